"""``fmdist jobs``: look after what ``fmdist submit`` has handed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from fmdist.cli.frame import Answer, verb

if TYPE_CHECKING:
    from fmdist.orchestration.jobs import Job, Jobs

GRACE = "RAY_JOB_STOP_WAIT_TIME_S"


def to_cluster(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """Give a verb the options ``address`` and ``insecure``."""
    insecure = click.option(
        "--insecure", is_flag=True, help="Take a cluster too that asks nobody for a token."
    )
    return click.option(
        "--address",
        metavar="URL",
        help="The cluster's job API, http://HOST:8265 [default: $RAY_API_SERVER_ADDRESS].",
    )(insecure(function))


@verb()
@click.argument("name", required=False, metavar="[ID]")
@to_cluster
@click.option("--logs", "action", flag_value="logs", help="Print what the job has written.")
@click.option("--follow", "following", is_flag=True, help="Show the job's log until it ends.")
@click.option("--stop", "action", flag_value="stop", help="Let the job save and end.")
@click.option("--resume", "action", flag_value="resume", help="Hand a job in again that didn't finish.")
def jobs(
    name: str | None, address: str | None, insecure: bool, action: str | None, following: bool
) -> Answer:
    """List the jobs of a cluster, or show, follow, stop or resume one."""
    from fmdist.errors import UsageError
    from fmdist.orchestration import door

    if name is None and (action or following):
        raise UsageError(field="ID", problem="no job is named", fix="list them with fmdist jobs")
    if following and action in ("logs", "stop"):
        raise UsageError(field="--follow", problem=f"can't be combined with --{action}")
    way = door.find(address, insecure)
    # Imported here: Ray takes half a second, which a wrong address needn't wait for.
    from fmdist.orchestration.jobs import Jobs

    cluster = Jobs(way)
    if name is None:
        return _listed(cluster.all())
    if action == "logs":
        text = cluster.log(name)
        return Answer({"job": name, "log": text}, text.rstrip("\n"))
    if action == "stop":
        return _stop(cluster, name)
    if action == "resume":
        resumed = cluster.resume(name)
        name, before = resumed, name
        if not following:
            shown = _shown(cluster, cluster.get(name))
            return Answer(shown.data, f"{before} goes on as\n{shown.text}")
    if following:
        return follow(cluster, name, {"job": name}, [f"job:    {name}"])
    return _shown(cluster, cluster.get(name))


def follow(cluster: Jobs, name: str, data: dict[str, Any], lines: Sequence[str]) -> Answer:
    """Show a job's log on stderr until it ends; the exit code tells how it did.

    Args:
        cluster: where the job runs.
        name: its id.
        data: what is known of it, for ``--json``.
        lines: the same for people.

    Raises:
        Interrupted: on SIGINT or SIGTERM; the job goes on.
    """
    import logging
    import sys

    from fmdist.orchestration.jobs import outcome
    from fmdist.training.signals import EndAtOnce

    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    for line in lines:
        logging.getLogger(__name__).info("%s", line)
    on = f"the job goes on; look after it with: {'; '.join(look_after(cluster, name))}"
    with EndAtOnce(on):
        job = cluster.follow(name, write)
    shown = _facts(job)
    code = outcome(job)
    text = _sheet(job)
    if code:
        text += f"\n{_message(job)}"
    return Answer(data | shown, text, code)


def look_after(cluster: Jobs, name: str) -> list[str]:
    """Return the commands that look after a job."""
    import shlex

    where = ["--address", cluster.address, *([] if cluster.guarded else ["--insecure"])]
    return [shlex.join(["fmdist", "jobs", name, option, *where]) for option in ("--follow", "--stop")]


def _listed(found: Sequence[Job]) -> Answer:
    from fmdist import console

    if not found:
        return Answer({"jobs": []}, "no jobs on this cluster")
    rows = [
        [
            job.id,
            job.status.lower(),
            job.fact("recipe") or None,
            job.fact("run") or None,
            _when(job.started_s),
            None if job.seconds is None else console.human_duration(job.seconds),
        ]
        for job in found
    ]
    columns = ["job", "status", "recipe", "run (on the cluster)", "started", "duration"]
    return Answer({"jobs": [_facts(job) for job in found]}, console.table("", columns, rows))


def _shown(cluster: Jobs, job: Job) -> Answer:
    text = _sheet(job)
    if job.status == "FAILED":
        text += f"\n{_message(job)}"
    if job.active:
        text = "\n".join([text, *look_after(cluster, job.id)])
    return Answer(_facts(job), text)


def _stop(cluster: Jobs, name: str) -> Answer:
    from fmdist.training.signals import EndAtOnce

    with EndAtOnce(f"the job was told to stop: see 'fmdist jobs {name}'"):
        job, said = cluster.stop(name)
    grace = (
        "its run did not say that it had saved: it goes on from its newest checkpoint. "
        f"Ray kills a job 3 s after it was told to stop, unless {GRACE} says otherwise; start the cluster's "
        f"head with {GRACE}=60 in its environment to give it longer"
    )
    data = _facts(job) | {"saved": "Saved " in said, "said": said}
    return Answer(data, f"{_sheet(job)}\n{said or grace if job.status == 'STOPPED' else 'it had ended'}")


def _facts(job: Job) -> dict[str, Any]:
    return {
        "job": job.id,
        "status": job.status,
        "recipe": job.fact("recipe") or None,
        "verb": job.fact("verb") or None,
        "run": job.fact("run") or None,
        "artifact": job.fact("artifact") or None,
        "resumes": job.fact("resumes") or None,
        "started": _when(job.started_s),
        "seconds": job.seconds,
        "exit_code": job.exit_code,
        "entrypoint": job.entrypoint,
    }


def _sheet(job: Job) -> str:
    from fmdist import console

    lasted = "" if job.seconds is None else f", {console.human_duration(job.seconds)}"
    facts = {
        "job": f"{job.id} ({job.status.lower()}{lasted})",
        "recipe": job.fact("recipe"),
        "run": job.fact("run") and f"{job.fact('run')} (on the cluster)",
        "artifact": job.fact("artifact") and f"{job.fact('artifact')} (on the cluster)",
        "resumes": job.fact("resumes"),
        "started": _when(job.started_s),
        "command": job.entrypoint,
    }
    return "\n".join(f"{name + ':':<10}{text}" for name, text in facts.items() if text)


def _message(job: Job) -> str:
    """Return the end of what Ray says of a job that failed: the last lines of its log."""
    said = job.message.strip().splitlines()
    return "\n".join(said[-5:])


def _when(seconds: float | None) -> str | None:
    from datetime import UTC, datetime

    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds")
