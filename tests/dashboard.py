"""What answers in the place of a Ray cluster's dashboard, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "0123456789" * 4


@dataclass
class Dashboard:
    """A cluster as its Jobs API shows it.

    Args:
        token: what it asks for; None: nothing.
        jobs: by id, as JSON.
        submitted: bodies of what was submitted.
        tokens: of every request, in order; "" for one without.
    """

    address: str = ""
    token: str | None = TOKEN
    ray_version: str = "2.60.0"
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def add(self, job_id: str, status: str, entrypoint: str, **metadata: str) -> None:
        self.jobs[job_id] = {
            "type": "SUBMISSION",
            "submission_id": job_id,
            "status": status,
            "entrypoint": entrypoint,
            "message": f"it is {status.lower()}",
            "metadata": metadata,
            "start_time": 1_700_000_000_000 + len(self.jobs),
            "end_time": 1_700_000_042_000 if status not in ("PENDING", "RUNNING") else None,
        }

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON, or text, of what is asked."""
        if path == "/api/version":
            return 200, {"ray_version": self.ray_version, "version": "4", "ray_commit": ""}
        if path == "/api/jobs/" and method == "GET":
            return 200, list(self.jobs.values())
        if path == "/api/jobs/":
            request = json.loads(body)
            self.submitted.append(request)
            self.add(
                request["submission_id"], "PENDING", request["entrypoint"], **request["metadata"]
            )
            return 200, {"submission_id": request["submission_id"], "job_id": ""}
        job_id, _, verb = path.removeprefix("/api/jobs/").partition("/")
        if job_id not in self.jobs:
            return 404, f"Job {job_id} does not exist"
        if verb == "logs":
            return 200, {"logs": f"what {job_id} wrote\n"}
        if verb == "stop":
            return 200, {"stopped": self.jobs[job_id]["end_time"] is None}
        return 200, self.jobs[job_id]


@contextmanager
def dashboard(**changes: Any) -> Iterator[Dashboard]:
    """One that listens on 127.0.0.1."""
    board = Dashboard(**changes)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            board.tokens.append(given)
            if board.token is not None and given != board.token:
                status, found = (403, "Forbidden: Invalid token") if given else (401, "Missing")
            else:
                status, found = board.answer(self.command, self.path, body)
            text = found if isinstance(found, str) else json.dumps(found)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        board.address = f"127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield board
        server.shutdown()
