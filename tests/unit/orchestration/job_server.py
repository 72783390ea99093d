"""Answers over HTTP as Ray's job API does, as far as jobs are handed in and looked after; runs none."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "0123456789abcdef"


class JobServer(ThreadingHTTPServer):
    """A server on a free port of this machine.

    Args:
        token: what it asks for; None lets everybody in.
    """

    daemon_threads = True

    def __init__(self, token: str | None = TOKEN) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.token = token
        self.hosts = [socket.gethostname()]
        self.jobs: list[dict[str, Any]] = []
        self.packages: dict[str, bytes] = {}
        self.seen: list[tuple[str, str, str]] = []
        """Method, path and the authorization of every request."""
        self.logs = ""
        self.about: Any = {"version": "4", "ray_version": "2.60.0", "ray_commit": ""}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def end(self, status: str, exit_code: int | None = None, **more: Any) -> None:
        """Let the newest job end."""
        ended = {"status": status, "end_time": 1_700_000_060_000, "driver_exit_code": exit_code}
        self.jobs[-1] |= {**ended, **more}


class _Answers(BaseHTTPRequestHandler):
    server: JobServer

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        if not self.let_in():
            return
        parts = self.path.strip("/").split("/")
        if self.path == "/api/version":
            self.answer(self.server.about)
        elif self.path == "/nodes?view=hostNameList":
            self.answer({"data": {"hostNameList": self.server.hosts}})
        elif self.path == "/api/jobs/":
            self.answer(self.server.jobs)
        elif self.path.startswith("/api/packages/"):
            self.answer({}, 200 if parts[-1] in self.server.packages else 404)
        elif parts[-1] == "logs":
            self.answer({"logs": self.server.logs})
        else:
            self.answer({}, 404)

    def do_PUT(self) -> None:
        if self.let_in():
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.packages[self.path.rpartition("/")[2]] = body
            self.answer({})

    def do_POST(self) -> None:
        if not self.let_in():
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/stop"):
            self.server.end("STOPPED")
            self.answer({"stopped": True})
            return
        asked = json.loads(body)
        job = {
            "type": "SUBMISSION",
            "status": "RUNNING",
            "start_time": 1_700_000_000_000 + len(self.server.jobs),
        }
        self.server.jobs.append(job | asked)
        self.answer({"job_id": asked["submission_id"], "submission_id": asked["submission_id"]})

    def let_in(self) -> bool:
        shown = self.headers.get("Authorization", "")
        self.server.seen.append((self.command, self.path, shown))
        if self.server.token is None or shown == f"Bearer {self.server.token}":
            return True
        self.answer("Forbidden" if shown else "Unauthorized", 403 if shown else 401)
        return False

    def answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(server: JobServer) -> Iterator[JobServer]:
    """Answer while entered."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
