"""What a running Ray cluster says of itself, asked by a process of its own: some of Ray's failures
abort the process that meets them.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Literal

log = logging.getLogger(__name__)

_RETRY_S = 0.3
# for starting Python and importing Ray, which takes long on a shared file system; not part of the
# time-out
_GRACE_S = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from the head.

    Args:
        outcome: `answered`; `denied`: it asks for a token, or for another one; `no_token`: we found
            none to send.
        local_nodes: ids of the cluster's living nodes on this machine.
        detail: what Ray says about it.
    """

    outcome: Literal["answered", "denied", "no_token"]
    ray_version: str = ""
    python_version: str = ""
    local_nodes: tuple[str, ...] = ()
    detail: str = ""


class ProbeFailed(RuntimeError):
    """The probing process ended without an answer."""


def wait_for_listener(address: str, *, timeout_s: float) -> None:
    """Returns when something accepts connections at HOST:PORT.

    A head that is just starting gets the time.

    Raises:
        TimeoutError: nothing did; says what the system answered.
    """
    host, _, port = address.rpartition(":")
    until = time.monotonic() + timeout_s
    told = False
    while True:
        try:
            socket.create_connection(
                (host.strip("[]"), int(port)), timeout=max(0.1, until - time.monotonic())
            ).close()
        except OSError as error:
            if time.monotonic() + _RETRY_S > until or isinstance(error, socket.gaierror):
                raise TimeoutError(str(error)) from error
            if not told:
                log.info(
                    "nothing answers at %s yet (%s); trying for %g s", address, error, timeout_s
                )
                told = True
            time.sleep(_RETRY_S)
        else:
            return


def ask(address: str, *, with_token: bool, timeout_s: float) -> Answer:
    """Asks the head at `address` (HOST:PORT).

    Args:
        with_token: with the token that Ray finds in the environment or in its file, else without
            any: a cluster that answers then is open.

    Raises:
        TimeoutError: no answer within `timeout_s`.
        ProbeFailed: Ray gave up for another reason.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if with_token or name not in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    }
    environment["RAY_AUTH_MODE"] = "token" if with_token else "disabled"
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-P", "-m", "workers.cluster.probe", address, str(timeout_s)]
    try:
        child = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s + _GRACE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(
            f"a new Python process did not start and import Ray within {_GRACE_S:.0f} s"
        ) from error
    if child.returncode == -signal.SIGALRM:
        raise TimeoutError(f"no answer within {timeout_s:.0f} s")
    if child.returncode:
        lines = [line for line in child.stderr.splitlines() if line.strip()] or [
            f"exit status {child.returncode}"
        ]
        raise ProbeFailed(lines[-1] if lines[0].startswith("Traceback") else lines[0])
    fields = json.loads(child.stdout.splitlines()[-1])
    return Answer(**(fields | {"local_nodes": tuple(fields["local_nodes"])}))


def _answer(address: str) -> Answer:
    from ray._private.services import find_node_ids
    from ray._raylet import (  # type: ignore[attr-defined]
        AuthenticationMode,
        AuthenticationTokenLoader,
        GcsClient,
        get_authentication_mode,
    )
    from ray.exceptions import AuthenticationError

    if get_authentication_mode() == AuthenticationMode.TOKEN:
        try:
            found = AuthenticationTokenLoader.instance().has_token()
        except AuthenticationError as error:  # RAY_AUTH_TOKEN_PATH names no file
            return Answer("no_token", detail=str(error).partition(". ")[0])
        if not found:  # asked for here, since a client without one aborts the process
            return Answer("no_token")
    try:
        client = GcsClient(address=address)
        metadata = json.loads(
            client.internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster") or b"{}"
        )
        nodes = client.get_all_node_info()
    except AuthenticationError as error:
        return Answer("denied", detail=str(error).partition(". ")[0])
    alive = {node_id.hex() for node_id, info in nodes.items() if info.state == info.ALIVE}
    return Answer(
        "answered",
        metadata.get("ray_version", "unknown"),
        metadata.get("python_version", "unknown"),
        tuple(sorted(alive & set(find_node_ids()))),
    )


def _main() -> None:
    import ray  # noqa: F401 - before the alarm is set

    # Left at its default, the signal ends the process wherever in C++ it waits. Ray alone would try
    # for 40 s.
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
    sys.stdout.write(json.dumps(asdict(_answer(sys.argv[1]))) + "\n")
    sys.stdout.flush()
    os._exit(0)  # Ray's threads need no farewell


if __name__ == "__main__":
    _main()
