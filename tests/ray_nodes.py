"""Several Ray nodes as processes on this machine, for tests of clusters: each with an address of
its own on loopback, to be killed and frozen.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_OBJECT_STORE_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class RayNode:
    """One node. All its processes are in the session of the `ray start` that made it, which is how
    they are found: workers rewrite their names.
    """

    address: str
    session: int

    def pids(self) -> list[int]:
        """Processes of the node: raylet, agents, workers, and those of the head.

        Not the dead ones that nobody has waited for.
        """
        return [pid for pid in psutil.pids() if _session_of(pid) == self.session and _lives(pid)]

    def kill(self) -> None:
        """SIGKILL for all of them, as when a machine loses power."""
        until = time.monotonic() + 20
        while pids := self.pids():
            if time.monotonic() > until:
                raise TimeoutError(
                    f"processes of the Ray node {self.address} survive SIGKILL: {pids}"
                )
            self._signal(pids, signal.SIGKILL)
            time.sleep(0.05)

    def stop(self) -> None:
        """SIGSTOP for all of them, as when a machine hangs or its network is cut."""
        self._signal(self.pids(), signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(self.pids(), signal.SIGCONT)

    @staticmethod
    def _signal(pids: list[int], number: signal.Signals) -> None:
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:  # ended by itself meanwhile
                continue


class RayNodes:
    """A cluster of processes.

    Args:
        folder: gets the nodes' logs when the cluster closes, and their working folder.
        token: what the cluster asks for; None for an open one.

    Use as a context manager, or `close` it: nothing is left running then. Ports are chosen by the
    system, the n-th node has the address 127.0.0.(n+1), and nothing of another Ray on this machine
    is touched.
    """

    def __init__(self, folder: Path, token: str | None) -> None:
        self.folder = folder
        self.address = ""
        self.nodes: list[RayNode] = []
        self._scratch = Path(
            tempfile.mkdtemp(prefix="rn-", dir="/tmp")
        )  # short, for the Unix sockets below
        self._cwd = folder / "cwd"
        self._cwd.mkdir(parents=True)
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("RAY_") and name != "PYTHONPATH"
        }
        """What a driver needs to join, beside what this process has; for a subprocess."""
        self.environment["RAY_AUTH_MODE"] = "disabled" if token is None else "token"
        if token is not None:
            path = self._scratch / "token"
            path.touch(mode=0o600)
            path.write_text(token)
            self.environment["RAY_AUTH_TOKEN_PATH"] = str(path)

    def __enter__(self) -> RayNodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start_head(
        self,
        num_cpus: int = 0,
        *,
        dashboard_port: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> RayNode:
        """Starts the head. Afterwards `address` (HOST:PORT) can be joined.

        Args:
            dashboard_port: on 127.0.0.1, where it takes jobs; None for no dashboard.
        """
        node = self._start(
            "--head",
            "--port=0",
            *(
                ("--include-dashboard=false",)
                if dashboard_port is None
                else (
                    "--include-dashboard=true",
                    "--dashboard-host=127.0.0.1",
                    f"--dashboard-port={dashboard_port}",
                )
            ),
            "--no-monitor",
            num_cpus=num_cpus,
            num_gpus=0,
            environment=environment,
        )
        scratch = self._scratch / str(len(self.nodes) - 1)
        self.address = (scratch / "ray_current_cluster").read_text().strip()
        return node

    def add_node(
        self, num_cpus: int = 1, num_gpus: int = 0, *, environment: Mapping[str, str] | None = None
    ) -> RayNode:
        """Starts one more node and waits until the cluster has it."""
        return self._start(
            f"--address={self.address}",
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            environment=environment,
        )

    def close(self) -> None:
        """Kills what is left, workers first and the head last, and moves the logs to `folder`."""
        for node in reversed(self.nodes):
            node.kill()
        for logs in self._scratch.glob("*/session_2*/logs"):
            shutil.copytree(
                logs,
                self.folder / f"logs-{logs.relative_to(self._scratch).parts[0]}",
                symlinks=True,
            )
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _start(
        self, *options: str, num_cpus: int, num_gpus: int, environment: Mapping[str, str] | None
    ) -> RayNode:
        number = len(self.nodes)
        address = f"127.0.0.{number + 2}"
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            *options,
            f"--node-ip-address={address}",
            f"--temp-dir={self._scratch / str(number)}",
        ]
        command += [
            f"--num-cpus={num_cpus}",
            f"--num-gpus={num_gpus}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
        ]
        command += ["--disable-usage-stats", "--include-log-monitor=false"]
        command += ["--dashboard-agent-listen-port=0"]
        log = self.folder / f"start-{number}.log"
        with log.open("w") as output:
            starter = subprocess.Popen(
                command,
                cwd=self._cwd,
                env=self.environment | dict(environment or {}),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            node = RayNode(address, starter.pid)
            self.nodes.append(node)  # before it may fail, so that it is cleaned up
            if starter.wait(timeout=120):
                raise RuntimeError(f"ray start failed:\n{log.read_text()}")
        return node


def new_token() -> str:
    return secrets.token_hex(32)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port: int = chosen.getsockname()[1]
        return port


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _lives(pid: int) -> bool:
    try:
        lives: bool = psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    return lives
