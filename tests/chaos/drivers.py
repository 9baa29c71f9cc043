"""A real driver, with its own Ray and evaluators, killed by SIGKILL and started again with the same
command.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.leaks import wait_until
from tests.conftest import ROOT
from tests.pipelines.command import without_times

_START_TIMEOUT_S = 300.0
_GONE_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class KilledDriver:
    """What one kill did.

    Args:
        stored: scores that were in the store.
        seconds: that this driver had lived.
        processes: that it had started.
        gone_after_s: until the last of them was gone.
    """

    stored: int
    seconds: float
    processes: int
    gone_after_s: float


def kill_drivers(
    folder: Path, arguments: Sequence[str], num_kills: int, seed: int
) -> list[KilledDriver]:
    """Runs `pipelines.prune` with these arguments, kills it at moments drawn from the seed, and
    lets the last one come to its end.

    The trajectory must be that of an undisturbed run in one process, and nothing that was stored
    may be scored again.
    """
    folder.mkdir()
    whole = _command(folder, "whole", arguments, "cluster=inline")
    assert (
        subprocess.run(
            whole,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_START_TIMEOUT_S,
        ).returncode
        == 0
    )
    total = _num_scores(folder / "whole.db")
    draw = random.Random(seed)
    command = _command(folder, "run", arguments, "cluster=local", "cluster.num_evaluators=2")
    moments = sorted(draw.sample(range(total * 4 // 5), num_kills))
    killed = [_kill(command, folder, moment) for moment in moments]
    stored = _num_scores(folder / "run.db")
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=_START_TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert without_times(folder / "run/trajectory.jsonl") == without_times(
        folder / "whole/trajectory.jsonl"
    )
    summary = json.loads((folder / "run/summary.json").read_text())
    assert summary["evaluations"]["scored"] == total - stored
    assert summary["faults"] == {}
    assert 0 < stored < total
    return killed


def _command(folder: Path, name: str, arguments: Sequence[str], *cluster: str) -> list[str]:
    places = [
        f"store.url=sqlite:///{folder}/{name}.db",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
        f"output_dir={folder / name}",
    ]
    return [sys.executable, "-m", "pipelines.prune", *arguments, *cluster, *places]


def _num_scores(file: Path) -> int:
    """0 as long as there is no store."""
    if not file.exists():
        return 0
    with (
        closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store,
        suppress(sqlite3.OperationalError),
    ):
        return int(store.execute("select count(*) from scores").fetchone()[0])
    return 0


def _kill(command: Sequence[str], folder: Path, moment: int) -> KilledDriver:
    """As soon as there are more than `moment` scores in the store, and more than there were."""
    before, started = _num_scores(folder / "run.db"), time.monotonic()
    base = Path("/tmp") / f"chaos{os.getpid() % 1000}"  # short: Ray's sockets lie below
    base.mkdir(exist_ok=True)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(base)},
    )
    descendants: list[psutil.Process] = []
    try:
        while (stored := _num_scores(folder / "run.db")) <= max(moment, before):
            assert process.poll() is None, "the driver ended before it could be killed"
            assert time.monotonic() - started < _START_TIMEOUT_S
            time.sleep(0.002)
        process.send_signal(signal.SIGSTOP)  # so that the list of its processes is whole
        descendants = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    killed = time.monotonic()
    gone = wait_until(lambda: not any(map(_lives, descendants)), _GONE_TIMEOUT_S)
    seconds = time.monotonic() - killed
    assert gone, (
        f"left {_GONE_TIMEOUT_S:.0f} s after their driver was killed: "
        f"{[child for child in descendants if _lives(child)]}"
    )
    shutil.rmtree(base)  # Ray's logs and the token: a killed driver cannot remove them
    return KilledDriver(stored, killed - started, len(descendants), seconds)


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
