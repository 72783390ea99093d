"""The way to a cluster's job API: its address, the token, and whether the server asks for one. No Ray here.

Whoever reaches a job API runs what he likes there, so an API that lets everybody in is refused. The server is
asked without the token first: only one that asks for a token is shown it.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from fmdist.errors import UsageError

TIMEOUT_S = 10.0
"""How long a server may take to answer."""

ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
TOKEN, TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""Variables that Ray reads too."""

_EXAMPLE = "http://HOST:8265"

_PROBE = "/api/jobs/none"
"""A job that doesn't exist: who is let in is told so, in a few bytes."""


class Door(NamedTuple):
    """Where jobs are handed in, and the headers that open it."""

    address: str
    headers: Mapping[str, str]
    """Hold the token: never to be logged."""

    @property
    def host(self) -> str:
        """The name or number of the machine."""
        return urlsplit(self.address).hostname or ""

    def get(self, path: str) -> tuple[int, str]:
        """Return the status and the text of an answer, whatever it is; see `_ask`."""
        return _ask(self.address, path, self.headers)


def find(address: str | None, insecure: bool) -> Door:
    """Return the way in, once the server has let us in.

    Args:
        address: ``http://HOST:PORT``; None takes it from the environment.
        insecure: take a server too that asks nobody for a token.

    Raises:
        UsageError: if there is no address, or nothing of Ray's answers there; if no token is at hand, or the
            server refuses it or needs none.
    """
    url = _address(address)
    status, _ = _ask(url, _PROBE, {})
    if status not in (401, 403):
        door = Door(url, {})
        _check_ray(door)
        if insecure:
            return door
        raise UsageError(
            field="--address",
            problem="this server lets everybody in: it asks for no token, and a job can run any code there",
            value=url,
            fix="start the cluster with RAY_AUTH_MODE=token, or say --insecure if only you can reach it",
        )
    token, source = _token()
    # Given as a header, since Ray reads its own variables once per process and may have done so already.
    door = Door(url, {"Authorization": f"Bearer {token}"})
    if door.get(_PROBE)[0] in (401, 403):
        raise UsageError(
            field="--address",
            problem=f"the server refuses the token of {source}",
            value=url,
            fix=f"set {TOKEN_PATH} to a file with the token that the cluster was started with",
        )
    _check_ray(door)
    return door


def _address(given: str | None) -> str:
    for source, value in (("--address", given), *((name, os.environ.get(name)) for name in ADDRESSES)):
        if not value or (source == "RAY_ADDRESS" and not value.startswith(("http://", "https://"))):
            continue
        parts = urlsplit(value.rstrip("/"))
        try:
            whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 0) >= 0
        except ValueError:
            whole = False
        if not whole or parts.query or parts.fragment:
            raise UsageError(
                field=source, problem="not the address of a job API", value=value, allowed=_EXAMPLE
            )
        if parts.username or parts.password:
            raise UsageError(
                field=source,
                problem="an address is shown and logged, so it must hold no name and no password",
                fix=f"use {_EXAMPLE}, and a token in {TOKEN_PATH}",
            )
        return value.rstrip("/")
    raise UsageError(
        field="--address",
        problem="no cluster is named",
        allowed=_EXAMPLE,
        fix=f"give it, or set {ADDRESSES[0]}; it is the address of the cluster's dashboard",
    )


def _token() -> tuple[str, str]:
    """Return the token, found as Ray finds it, and where it was."""
    if token := os.environ.get(TOKEN, "").strip():
        return token, TOKEN
    named = os.environ.get(TOKEN_PATH)
    file = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    if token and token.isascii() and token.isprintable():
        return token, str(file)
    raise UsageError(
        field=TOKEN_PATH if named else TOKEN,
        problem="the server asks for a token, and there is none here" if not token else "not a token",
        allowed=f"{TOKEN}, or a file named by {TOKEN_PATH} [default: ~/.ray/auth_token]",
        fix="use the token that the cluster was started with",
    )


def _check_ray(door: Door) -> None:
    status, text = door.get("/api/version")
    try:
        if status == 200 and "ray_version" in json.loads(text):
            return
    except (ValueError, TypeError):
        pass
    raise UsageError(
        field="--address",
        problem=f"what answers there is not Ray's job API (HTTP {status})",
        value=door.address,
        allowed=f"the address of the cluster's dashboard, such as {_EXAMPLE}",
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token is for the server that was named, and for no other that it points to."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


def _ask(address: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
    """Return the status and the text of the answer to a GET; an error's status is an answer too."""
    request = urllib.request.Request(address + path, headers=dict(headers))
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")
    except (OSError, ValueError, http.client.HTTPException) as error:
        said = " ".join(str(getattr(error, "reason", None) or error).split())[:200]
        reason = said if said.isprintable() and said else type(error).__name__
        raise UsageError(
            field="--address",
            problem=f"no job API answers there ({reason})",
            value=address,
            allowed=f"the address of the cluster's dashboard, such as {_EXAMPLE}",
            fix="start the cluster with 'ray start --head', and look which port its dashboard has",
        ) from error


KNOWN_SECONDS = 30.0
"""How long a cluster may take to know its machines."""


def is_here(door: Door) -> bool:
    """Return whether all machines of the cluster are this one, as far as it can be known."""
    hosts: list[str] = []
    # A cluster that has just started doesn't know its machines for some seconds.
    until = time.monotonic() + KNOWN_SECONDS
    while not hosts and time.monotonic() < until:
        status, text = door.get("/nodes?view=hostNameList")
        try:
            hosts = json.loads(text)["data"]["hostNameList"] if status == 200 else []
        except (ValueError, KeyError, TypeError):
            break
        if not hosts:
            time.sleep(0.5)
    # A forwarded port looks like this machine, and two machines may have the same name: both must agree.
    return bool(hosts) and set(hosts) == {socket.gethostname()} and _is_local(door.host)


def _is_local(host: str) -> bool:
    """Return whether an address is one of this machine's, which alone can be bound."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listening:
            listening.bind(place)
    except OSError:
        return False
    return True
