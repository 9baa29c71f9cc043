"""`python -m pipelines.prune` as a process, watched through what it writes for people: status.json,
trajectory.jsonl and prune.log.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

Status = dict[str, Any]

_LOOK_S = 0.05


class SearchEnded(AssertionError):
    """It was to go on."""


@dataclass
class Command:
    """One search. The same command may be started again after its process has ended.

    Args:
        options: after `python -m pipelines.prune`.
        idle: gives way to everything else on the machine, until `hurry`.
    """

    options: Sequence[str]
    environment: Mapping[str, str]
    output_dir: Path
    idle: bool = False
    longest_task: int = 0
    progress: list[tuple[float, int]] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None
    _seen: float = 0.0

    def start(self) -> None:
        words = [
            sys.executable,
            "-m",
            "pipelines.prune",
            *self.options,
            f"output_dir={self.output_dir}",
        ]
        with self.console.open("ab") as output:
            self._process = subprocess.Popen(
                words,
                env=dict(self.environment),
                cwd=self.console.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if self.idle:
            self._schedule(os.SCHED_IDLE)

    def hurry(self) -> None:
        """Gives way no longer."""
        self._schedule(os.SCHED_OTHER)

    @property
    def console(self) -> Path:
        """What it prints."""
        return self.output_dir.with_name(f"{self.output_dir.name}.out")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait(self, timeout_s: float) -> int:
        """Its exit status."""
        until = time.monotonic() + timeout_s
        while self.is_running:
            if time.monotonic() > until:
                raise TimeoutError(
                    f"the search was not done within {timeout_s:.0f} s\n{self.tail()}"
                )
            self.look()
            time.sleep(_LOOK_S)
        assert self._process is not None
        return int(self._process.returncode)

    def look(self) -> Status:
        """What status.json says, if it is from this process; else nothing."""
        try:
            status: Status = json.loads((self.output_dir / "status.json").read_text())
        except FileNotFoundError:
            return {}
        if status["pid"] != self.pid:
            return {}
        self.longest_task = max([self.longest_task, *tasks_in_flight(status).values()])
        scored = status.get("evaluations", {}).get("scored", 0)
        if (
            status["updated"] != self._seen
            and scored
            and (not self.progress or scored != self.progress[-1][1])
        ):
            self.progress.append((status["updated"], scored))
        self._seen = status["updated"]
        return status

    def until(self, what: str, condition: Callable[[Status], object], timeout_s: float) -> Status:
        """Waits for a status that satisfies a condition.

        Raises:
            TimeoutError: none came.
            SearchEnded: the search ended before.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            ended = not self.is_running
            status = self.look()
            if status and condition(status):
                return status
            if ended:
                raise SearchEnded(
                    f"the search ended (exit status {self.wait(0)}) before this: "
                    f"{what}\n{self.tail()}"
                )
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"not within {timeout_s:.0f} s: {what}\nstatus: "
                    f"{json.dumps(status, indent=1)}\n{self.tail()}"
                )
            time.sleep(_LOOK_S)

    def log(self) -> str:
        path = self.output_dir / "prune.log"
        return path.read_text() if path.exists() else ""

    def num_steps(self) -> int:
        path = self.output_dir / "trajectory.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def longest_pause_s(self, since: float, until: float) -> float:
        """The longest time without a new score in the store, in which some of `since` to `until`
        (seconds since 1970) lies.
        """
        times = [moment for moment, _ in self.progress]
        return max(
            (
                after - before
                for before, after in pairwise(times)
                if after > since and before < until
            ),
            default=0.0,
        )

    def _schedule(self, policy: int) -> None:
        for task in Path(f"/proc/{self.pid}/task").glob("*"):
            try:
                os.sched_setscheduler(int(task.name), policy, os.sched_param(0))
            except (ProcessLookupError, PermissionError):  # only root may always turn back
                continue

    def tail(self) -> str:
        printed = self.console.read_text(errors="replace") if self.console.exists() else ""
        parts = [(self.output_dir / "prune.log", self.log()), (self.console, printed)]
        return "\n".join(
            f"--- end of {path} ---\n" + "\n".join(text.splitlines()[-40:]) for path, text in parts
        )


def at_work(status: Status) -> dict[str, Status]:
    """Evaluators that have started, by the address of their node."""
    return {
        address_of(evaluator): evaluator
        for evaluator in status.get("evaluators", [])
        if "pid" in evaluator
    }


def address_of(evaluator: Status) -> str:
    found = re.search(r"\(([\d.]+)\)$", evaluator["node"])
    assert found, evaluator["node"]
    return found[1]


def tasks_in_flight(status: Status) -> dict[int, int]:
    """Candidates that each evaluator is at work on, by its number."""
    return {
        evaluator["number"]: task_size(evaluator["task"])
        for evaluator in status.get("evaluators", [])
        if evaluator["task"]
    }


def task_size(task: str) -> int:
    """Candidates of a task, as `ScoreTask` writes itself: `block batch 3: mlp block of layer 1,
    ..., ... and 4 more`.
    """
    if " batch " not in task:
        return 0
    more = re.search(r" and (\d+) more$", task)
    return 3 + int(more[1]) if more else 1 + task.count(", ")


def end_session(session: int) -> None:
    """SIGKILL for every process of a session that we started."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                os.kill(int(entry.name), signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
