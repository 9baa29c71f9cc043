"""Jobs of a Ray cluster, through the API of its dashboard, from any machine that reaches it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from ray._raylet import AuthenticationMode  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from pruning.errors import InputError
from workers.cluster.authentication import GIVEN_BY, ray_environment
from workers.cluster.probe import wait_for_listener

logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.WARNING)

log = logging.getLogger(__name__)

PORT = 8265
"""Of a dashboard, where the address names none."""

_LISTEN_S, _ANSWER_S, _REQUEST_S = 5.0, 10.0, 60.0
_ELSEWHERE = dict.fromkeys(("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"))
"""Variables that Ray's client would take before the address that it is given."""


class JobsError(RuntimeError):
    """The cluster did not do what it was asked for."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the cluster says of a job.

    Args:
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        entrypoint: the shell command that it runs.
        started, ended: seconds since the epoch.
    """

    submission_id: str
    status: str
    entrypoint: str
    message: str
    metadata: Mapping[str, str]
    started: float | None
    ended: float | None

    @property
    def is_over(self) -> bool:
        return self.status not in ("PENDING", "RUNNING")


def dashboard_url(address: str) -> str:
    """The address of a dashboard, HOST, HOST:PORT or a URL, as a URL without a slash at its end.

    Raises:
        InputError: it is none.
    """
    if address.startswith("ray://"):
        raise InputError(
            f"--address: {address} is the address of a Ray Client server; give that of the "
            f"dashboard, HOST:{PORT}"
        )
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        standard = PORT if parts.scheme == "http" else 443
        port = standard if parts.port is None else parts.port
    except ValueError:
        parts, port = urlsplit(""), 0
    if "@" in address:
        raise InputError(
            "--address: holds a user or a password, which others see in the list of processes; "
            f"give HOST:PORT, and the token by {GIVEN_BY}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or not port:
        raise InputError(
            f"--address: {address!r} is neither HOST:PORT of a Ray dashboard, such as "
            f"10.0.0.5:{PORT}, nor an http or https URL"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"


class Jobs:
    """The jobs of one cluster.

    The cluster is asked without a token first, so that one that wants none never sees ours.

    Args:
        address: see `dashboard_url`.

    Raises:
        InputError: nothing answers there within seconds, it is no dashboard, or the token is
            missing or wrong.
    """

    def __init__(self, address: str) -> None:
        self.url = dashboard_url(address)
        _wait_for(self.url)
        self.is_open = _is_open(self.url)
        """It asks nobody for a token."""
        if self.is_unencrypted and not self.is_open:
            log.warning(
                "%s: the token travels unencrypted; on a network that others use, reach the "
                "dashboard through ssh -L or https",
                self.url,
            )
        mode = AuthenticationMode.DISABLED if self.is_open else AuthenticationMode.TOKEN
        with _explained(self.url), ray_environment(mode, _ELSEWHERE):
            # of `logs --follow` too, where nothing else reads that variable
            certificates = os.environ.get("REQUESTS_CA_BUNDLE") or True
            self._client = _Client(self.url, verify=certificates)

    @property
    def ray_version(self) -> str:
        return self._client._server_ray_version or "unknown"

    @property
    def is_unencrypted(self) -> bool:
        """Others on the way can read what is sent, the token too."""
        parts = urlsplit(self.url)
        return parts.scheme == "http" and not _is_loopback(parts.hostname or "")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What differs there from here."""
        if self.ray_version == ray.__version__:
            return ()
        return (
            f"the cluster runs Ray {self.ray_version}, this is Ray {ray.__version__}; the job runs "
            "with what is installed there",
        )

    def submit(
        self, entrypoint: str, *, submission_id: str, metadata: Mapping[str, str], stop_s: int
    ) -> str:
        """Starts a job; returns its id.

        Args:
            entrypoint: for the shell of the node that runs it.
            metadata: everybody who reaches the dashboard reads it, and the command.
            stop_s: seconds that the job gets to put its things in order when it is stopped.

        Raises:
            JobsError: the cluster does not take it.
        """
        with _explained(self.url):
            return str(
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=submission_id,
                    metadata=dict(metadata),
                    runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_s)}},
                )
            )

    def list(self) -> tuple[Job, ...]:
        """Those that were submitted, the oldest first."""
        with _explained(self.url):
            found = [_job(each) for each in self._client.list_jobs() if each.submission_id]
        return tuple(sorted(found, key=lambda job: job.started or 0.0))

    def find(self, submission_id: str) -> Job:
        """One of them.

        Raises:
            InputError: there is none of this id.
        """
        with _explained(self.url, submission_id):
            return _job(self._client.get_job_info(submission_id))

    def logs(self, submission_id: str) -> str:
        """All that its driver wrote so far.

        Raises:
            InputError: there is no job of this id.
        """
        with _explained(self.url, submission_id):
            return str(self._client.get_job_logs(submission_id))

    def follow(self, submission_id: str, write: Callable[[str], object]) -> None:
        """Calls `write` with all that its driver wrote and writes, until it ends.

        Raises:
            InputError: there is no job of this id.
        """

        async def tail() -> None:
            async for text in self._client.tail_job_logs(submission_id):
                write(text)

        self.find(submission_id)
        with _explained(self.url, submission_id):
            try:
                asyncio.run(tail())
            except aiohttp.ClientError as error:
                raise JobsError(f"{self.url}: {_reason(error)}") from error

    def stop(self, submission_id: str) -> bool:
        """Asks a job to end; False: it was over.

        Raises:
            InputError: there is no job of this id.
        """
        with _explained(self.url, submission_id):
            return bool(self._client.stop_job(submission_id))


class _Client(JobSubmissionClient):
    """Ray's own, which would wait for ever where nothing comes back."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, **options, timeout=_REQUEST_S)


def _job(details: Any) -> Job:
    times = (
        None if each is None else each / 1e3 for each in (details.start_time, details.end_time)
    )
    return Job(
        details.submission_id,
        getattr(details.status, "value", details.status),
        details.entrypoint,
        details.message or "",
        details.metadata or {},
        *times,
    )


def _wait_for(url: str) -> None:
    parts = urlsplit(url)
    try:
        wait_for_listener(f"{parts.hostname}:{parts.port}", timeout_s=_LISTEN_S)
    except TimeoutError as error:
        raise InputError(
            f"--address: nothing answers at {url} within {_LISTEN_S:g} s: {error}. Give the "
            "address of the dashboard, which a head shows that was started with "
            "--include-dashboard=true, and see that this machine reaches its port"
        ) from error


def _is_open(url: str) -> bool:
    """Whether the dashboard answers without a token."""
    try:
        answer = requests.get(f"{url}/api/version", timeout=_ANSWER_S, allow_redirects=False)
        if answer.status_code in (401, 403):
            return False
        version = json.loads(answer.text)["ray_version"] if answer.ok else None
    except (OSError, ValueError, TypeError, KeyError) as error:
        said = f": {_reason(error)}" if isinstance(error, OSError) else ""
        raise InputError(_no_dashboard(url) + said) from error
    if version is None:
        raise InputError(f"{_no_dashboard(url)}: HTTP status {answer.status_code}")
    return True


def _no_dashboard(url: str) -> str:
    return (
        f"--address: what listens at {url} does not answer as the dashboard of a Ray cluster does; "
        f"give HOST:PORT of the dashboard, port {PORT} unless chosen otherwise"
    )


@contextmanager
def _explained(url: str, submission_id: str = "") -> Iterator[None]:
    """Errors of Ray's client in the words of a person who gave an address and an id."""
    try:
        yield
    except AuthenticationError as error:
        refused = str(error).startswith("Authentication failed")
        raise InputError(
            f"--address: the cluster at {url} does not accept our token. Give the cluster's own "
            f"by {GIVEN_BY}"
            if refused
            else f"--address: the cluster at {url} wants a token, and there is none here. Give it "
            f"by {GIVEN_BY}"
        ) from error
    except JobsError:
        raise
    except RuntimeError as error:
        said = str(error).rstrip(".\n ")
        first, _, _ = said.partition("Traceback")
        last = said.rpartition("\n")[2]
        if submission_id and "status code 404" in said:
            raise InputError(
                f"{submission_id}: no such job at {url}; multipruner jobs lists them"
            ) from error
        raise JobsError(f"{url}: {said if first == said else first + last}") from error
    except OSError as error:
        raise JobsError(f"{url}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What went wrong first, without the layers that passed it on."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _is_loopback(host: str) -> bool:
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ip_address(str(each).partition("%")[0]).is_loopback for each in found)
