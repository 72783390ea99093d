"""Jobs of a Ray cluster: hand one in, look after it, stop it, and hand it in again where it stopped."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobSubmissionClient

from fmdist.errors import FmdistError, UsageError, did_you_mean
from fmdist.orchestration import packing
from fmdist.orchestration.door import Door

POLL_SECONDS = 0.5
"""How often the end of a job is looked for."""

RETRIES = 10
"""How often a log that breaks off is taken up again, if nothing comes meanwhile."""

ACTIVE = ("PENDING", "RUNNING")
"""What Ray calls a job that may still write into its run."""

LAST_WORDS = re.compile(r"^error: (interrupted by signal .*)$", re.MULTILINE)
"""What a run says when a signal has ended it in order, and what of it is kept."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What a job is, so that it can be handed in, and be handed in again."""

    recipe: str
    """The recipe's name."""
    verb: str
    entrypoint: str
    """A line for the shell."""
    archive: str
    """A path here, or the URI of what the cluster has already."""
    kept_as: str
    """The name by which the archive is kept on the machine that packed it."""
    run: str
    """The run's folder on the cluster."""
    artifact: str = ""
    resumes: str = ""
    """The id of the job that this one goes on from."""

    @property
    def metadata(self) -> dict[str, str]:
        """What the cluster keeps with the job, for everybody who may see its jobs."""
        facts = {"recipe": self.recipe, "verb": self.verb, "run": self.run, "archive": self.kept_as}
        more = {"artifact": self.artifact, "resumes": self.resumes}
        return {f"fmdist.{name}": text for name, text in {**facts, **more}.items() if text}


@dataclass(frozen=True)
class Job:
    """A job as the cluster tells of it."""

    id: str
    status: str
    entrypoint: str
    started_s: float | None
    """Seconds since 1970."""
    ended_s: float | None
    exit_code: int | None
    message: str
    metadata: Mapping[str, str]
    archive: str = field(repr=False)

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.status in ACTIVE

    @property
    def seconds(self) -> float | None:
        """How long it has run."""
        if self.started_s is None:
            return None
        return (self.ended_s or max(time.time(), self.started_s)) - self.started_s

    def fact(self, name: str) -> str:
        """Return what fmdist has noted of the job, or an empty string."""
        return self.metadata.get(f"fmdist.{name}", "")


class Jobs:
    """The jobs of one cluster.

    Every method raises `FmdistError` if the cluster stops answering, and those that take a job's id
    `UsageError` if there is no such job.

    Args:
        door: the way in, from `fmdist.orchestration.door.find`.
    """

    def __init__(self, door: Door) -> None:
        # They tell of every upload and connection at INFO, and not to our log.
        for module in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
        self._door = door
        with self._answering():
            self._client = JobSubmissionClient(door.address, headers=dict(door.headers))

    @property
    def address(self) -> str:
        """Of the job API."""
        return self._door.address

    @property
    def guarded(self) -> bool:
        """Whether the server asks for a token."""
        return bool(self._door.headers)

    def submit(self, order: Order) -> str:
        """Hand a job in and return its id.

        Raises:
            UsageError: if another job may still write into the run's folder.
        """
        jobs = self.all()
        for job in jobs:
            if job.active and job.fact("run") == order.run:
                raise UsageError(
                    field="-o",
                    problem=f"the job {job.id} is {job.status.lower()} and has this run",
                    value=order.run,
                    fix=f"wait for it, stop it (fmdist jobs {job.id} --stop), or name another folder",
                )
        with self._answering():
            return self._client.submit_job(
                entrypoint=order.entrypoint,
                submission_id=_new_id(order, {job.id for job in jobs}),
                runtime_env={"working_dir": order.archive},
                metadata=order.metadata,
            )

    def all(self) -> list[Job]:
        """Return the jobs that were handed in, the oldest first."""
        with self._answering():
            found = self._client.list_jobs()
        jobs = [_job(details) for details in found if details.submission_id]
        return sorted(jobs, key=lambda job: (job.started_s or float("inf"), job.id))

    def get(self, name: str) -> Job:
        """Return one job."""
        for job in self.all():
            if job.id == name:
                return job
        known = [job.id for job in self.all()]
        raise UsageError(
            field="ID",
            problem="no such job on this cluster",
            value=name,
            allowed=", ".join(known[-10:]) or "none: no job was handed in yet",
            fix=did_you_mean(name, known),
        )

    def log(self, name: str) -> str:
        """Return what a job has written."""
        self.get(name)
        with self._answering():
            return self._client.get_job_logs(name)

    def follow(self, name: str, write: Callable[[str], None]) -> Job:
        """Pass on what a job writes, from its start, until it ends; return it as it ended."""
        job = self.get(name)
        shown, quiet = 0, 0
        while True:
            before = shown

            def pass_on(text: str, end: int) -> None:
                nonlocal shown
                if end > shown:
                    write(text[len(text) - (end - shown) :])
                    shown = end

            try:
                asyncio.run(self._tail(name, pass_on))
                job = self.get(name)
                if not job.active:
                    return job
            except (RuntimeError, OSError, aiohttp.ClientError, FmdistError) as error:
                quiet = 0 if shown > before else quiet + 1
                if quiet > RETRIES:
                    raise FmdistError(
                        problem=f"the job's log can't be followed any more ({_short(error)})",
                        fix=f"the job may still run: fmdist jobs {name} --address {self._door.address}",
                    ) from error
            time.sleep(POLL_SECONDS)

    async def _tail(self, name: str, pass_on: Callable[[str, int], None]) -> None:
        end = 0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "ssl=None is deprecated")  # what Ray calls aiohttp with
            async for text in self._client.tail_job_logs(name):
                end += len(text)
                pass_on(text, end)

    def stop(self, name: str) -> tuple[Job, str]:
        """Send SIGTERM to a job and wait for its end; Ray kills it after a while.

        Returns:
            The job, and what its run said last: empty if it was killed before it could say what is kept.

        Raises:
            UsageError: if it has ended already.
        """
        job = self.get(name)
        if not job.active:
            raise UsageError(
                field="--stop", problem=f"the job has ended already ({job.status.lower()})", value=name
            )
        with self._answering():
            self._client.stop_job(name)
        job = self._ended(name)
        said = LAST_WORDS.findall(self.log(name))
        return job, said[-1] if said else ""

    def _ended(self, name: str) -> Job:
        while (job := self.get(name)).active:
            time.sleep(POLL_SECONDS)
        return job

    def resume(self, name: str) -> str:
        """Hand in again a job that was stopped or failed, with the same content, and return the new id.

        Raises:
            UsageError: if it waits, runs or has succeeded, if it wasn't made by ``fmdist submit``, or if what
                it was packed with is neither on the cluster nor here any more.
        """
        job = self.get(name)
        if job.active or job.status == "SUCCEEDED":
            fix = f"stop it first: fmdist jobs {name} --stop" if job.active else "there is nothing left to do"
            raise UsageError(field="--resume", problem=f"the job {_state(job)}", value=name, fix=fix)
        if not job.fact("run"):
            raise UsageError(
                field="--resume", problem="the job was not handed in by fmdist submit", value=name
            )
        order = Order(
            job.fact("recipe"),
            job.fact("verb"),
            job.entrypoint,
            self._archive(job),
            job.fact("archive"),
            job.fact("run"),
            job.fact("artifact"),
            resumes=job.id,
        )
        return self.submit(order)

    def _archive(self, job: Job) -> str:
        """Return what a job was handed in with, as it is kept here or as the cluster still has it."""
        here = packing.kept(job.fact("archive"))
        if here is not None:
            return str(here)
        protocol, _, package = job.archive.partition("://")
        if self._door.get(f"/api/packages/{protocol}/{package}")[0] == 200:
            return job.archive
        raise UsageError(
            field="--resume",
            problem="what the job was packed with is gone from the cluster, and is kept on another machine",
            value=job.id,
            fix=f"hand the recipe in again with fmdist submit and -o {job.fact('run')}: its run goes on",
        )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (RayError, RuntimeError, OSError, ValueError) as error:
            raise FmdistError(
                field="--address",
                problem=f"the cluster's job API failed ({_short(error)})",
                value=self._door.address,
                fix="look whether the cluster still runs, and into its dashboard's log",
            ) from error


def outcome(job: Job) -> int:
    """Return the exit code that tells how a job ended: 0, 2 for the user's mistake, else 1."""
    if job.status == "SUCCEEDED":
        return 0
    return 2 if job.exit_code == 2 else 1


def _new_id(order: Order, taken: set[str]) -> str:
    """Return an id that says which recipe it is, and for a job that goes on, which one it goes on from."""
    if not order.resumes:
        return f"{order.recipe}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    origin, number = re.sub(r"-r\d+$", "", order.resumes), 1
    while f"{origin}-r{number}" in taken:
        number += 1
    return f"{origin}-r{number}"


def _job(details: JobDetails) -> Job:
    return Job(
        id=str(details.submission_id),
        status=str(details.status.value),
        entrypoint=details.entrypoint,
        started_s=None if details.start_time is None else details.start_time / 1000,
        ended_s=None if not details.end_time else details.end_time / 1000,
        exit_code=details.driver_exit_code,
        message=details.message or "",
        metadata=details.metadata or {},
        archive=(details.runtime_env or {}).get("working_dir", ""),
    )


def _state(job: Job) -> str:
    return {"PENDING": "still waits", "RUNNING": "still runs"}.get(job.status, "has succeeded")


def _short(error: Any) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
