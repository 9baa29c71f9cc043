"""Everything that takes part in a cluster test, and how its search is watched."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil

from tests.cluster.command import Command, Status, at_work
from tests.cluster.mlflow_server import MlflowServer
from tests.cluster.story import Row, Story
from tests.cluster.traces import Traces
from tests.postgres import PostgresServer
from tests.ray_nodes import RayNode, RayNodes

FREEZE_S = 0.3
"""Longer than the driver needs to take an answer that was on its way."""

SOON_S, LATE_S = 120.0, 300.0
"""Deadlines on a machine that others use too: what takes seconds, and what takes a new process that
imports torch.
"""

NODE = {"RAY_worker_niceness": "0"}
"""Ray gives its workers the least time of all (nice 15), which on a machine that others use can
make this take for ever.
"""

T = TypeVar("T")


@dataclass
class Scene:
    """Everything that takes part.

    Args:
        workers: nodes that have or had an evaluator, in the order in which they came.
        num_alive: of them.
    """

    story: Story
    search: Command
    nodes: RayNodes
    workers: list[RayNode]
    postgres: PostgresServer
    database: str
    mlflow: MlflowServer
    traces: Traces
    num_alive: int
    status_at_kill: Status = field(default_factory=dict)
    stored_at_kill: int = 0

    def num_stored(self) -> int:
        [[count]] = self.postgres.execute("SELECT count(*) FROM scores", self.database)
        return int(count)

    def evaluator_processes(self) -> list[int]:
        return [
            pid
            for node in self.nodes.nodes
            for pid in node.pids()
            if "EvaluatorActor" in title(pid)
        ]

    def watch(
        self,
        row: Row,
        *,
        whole: Callable[[Status], object],
        noticed: Callable[[Status], object] | None = None,
        stored: int | None = None,
    ) -> Status:
        """Follows a fault until it is noticed, scores come again, and everything is back; fills in
        the row.
        """
        began = self.story.started + row.when_s
        before = stored if stored is not None else self.search.progress[-1][1]
        seen: dict[str, float] = {}

        def told(what: str, happened: Callable[[], object]) -> bool:
            if what not in seen and happened():
                seen[what] = time.time() - began
                self.story.tell(f"    {what} ({seen[what]:.1f} s after the fault)")
            return what in seen

        def over(status: Status) -> bool:
            known = noticed is None or told("noticed", lambda: noticed(status))
            going = told(
                "new scores are stored",
                lambda: status.get("evaluations", {}).get("scored", 0) > before,
            )
            return told("everything is back", lambda: known and whole(status)) and going

        status = self.search.until(f"{row.fault}: noticed, and everything back", over, LATE_S)
        row.noticed_s = seen.get("noticed", row.noticed_s)
        row.whole_s = seen["everything is back"]
        row.pause_s = self.search.longest_pause_s(began, status["updated"])
        self.story.rows.append(row)
        return status

    def meanwhile(self, act: Callable[[], T]) -> T:
        """Does something while the search is watched."""
        with ThreadPoolExecutor(1) as thread:
            done = thread.submit(act)
            while not done.done():
                self.search.look()
                time.sleep(0.05)
            return done.result()

    def a_moment_at_work(self, address: str | None = None) -> Status:
        """A fresh status in which an evaluator, the one at an address if that is given, is in the
        middle of a task.
        """

        def fresh(status: Status) -> bool:
            busy = {place for place, evaluator in at_work(status).items() if evaluator["task"]}
            return time.time() - status["updated"] < 0.2 and (
                address in busy if address else bool(busy)
            )

        return self.search.until(
            f"an evaluator at work{f' on {address}' if address else ''}", fresh, SOON_S
        )

    def frozen_at_work(self, address: str) -> tuple[Status, Status]:
        """Stops an evaluator (SIGSTOP) in the middle of a task; returns a status from afterwards,
        which says exactly what is in flight, and the evaluator.

        One that had just answered is let go again.
        """
        while True:
            pid = at_work(self.a_moment_at_work(address))[address]["pid"]
            os.kill(pid, signal.SIGSTOP)
            since = time.time() + FREEZE_S
            status = self.search.until(
                f"news of {address}", lambda status, since=since: status["updated"] > since, SOON_S
            )
            victim = at_work(status)[address]
            if victim["task"]:
                return status, victim
            os.kill(pid, signal.SIGCONT)

    def account(self, row: Row, before: Status, after: Status) -> None:
        """What the search says that it lost: at most what was in flight."""
        lost = after["lost_evaluations"] - before["lost_evaluations"]
        new = [fault for fault in after["recent_faults"] if fault not in before["recent_faults"]]
        assert len(new) == 1, f"one fault was made, these were noticed: {new}"
        assert 0 <= lost <= int(row.in_flight), (
            f"{lost} evaluations were lost, {row.in_flight} were in flight"
        )
        row.lost = str(lost)
        row.notes.append(f"{new[0]['kind']}: {new[0]['decision']}")
        speculative = after["speculative_tasks"] - before["speculative_tasks"]
        if speculative:
            row.notes.append(f"{speculative} late tasks done by another")


def title(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def eventually(condition: Callable[[], object], what: str, timeout_s: float = SOON_S) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.1)


def eventually_none(listed: Callable[[], list[Any]], timeout_s: float = 30.0) -> list[Any]:
    until = time.monotonic() + timeout_s
    while (found := listed()) and time.monotonic() < until:
        time.sleep(0.5)
    return found
