"""One evaluator of a `RayPool`: its actor, and what it is doing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from workers.pool.protocol import EvaluatorState, State
from workers.pool.running import Running, prefix_key
from workers.pool.schedule import Schedule
from workers.prefix import PrefixKey
from workers.tasks import EvaluatorInfo


@dataclass(eq=False)
class Worker:
    """One actor.

    Args:
        ready: the Ray reference that it will answer next.
        started: the one that it will answer when its model is loaded.
        since: when it began what it is doing, on the monotonic clock.
        ordered: it has been told the channel order.
        schedule: that its task is of, whose run may be over.
        held: the prefix that it has from its last task.
    """

    number: int
    actor: Any
    ready: Any
    started: Any
    ordered: bool
    state: State = "waiting for resources"
    since: float = field(default_factory=time.monotonic)
    info: EvaluatorInfo | None = None
    schedule: Schedule | None = None
    running: Running | None = None
    held: PrefixKey | None = None
    num_tasks: int = 0
    busy_s: float = 0.0

    def __str__(self) -> str:
        return f"evaluator {self.number}{f' on {self.info}' if self.info else ''}"

    @property
    def task(self) -> tuple[Schedule, Running]:
        """What it is at work on."""
        assert self.schedule is not None
        assert self.running is not None
        return self.schedule, self.running

    def load(self, now: float) -> None:
        """It has its resources and loads its model."""
        self.state, self.ready, self.since = "loading", self.started, now

    def work(self, schedule: Schedule, running: Running, now: float) -> None:
        self.state, self.since = "working", now
        self.schedule, self.running = schedule, running
        self.ready = self.actor.run.remote(running.task)

    def rest(self, info: EvaluatorInfo | None = None) -> None:
        """It is ready for a task."""
        self.state, self.schedule, self.running = "ready", None, None
        self.info = info or self.info

    def answered(self, now: float) -> None:
        """It has done its task."""
        _, running = self.task
        self.num_tasks += 1
        self.busy_s += now - self.since
        self.held = prefix_key(running.task)
        self.rest()

    def describe(self) -> EvaluatorState:
        task = str(self.running.task) if self.running else ""
        return EvaluatorState(self.number, self.state, self.info, task, self.num_tasks, self.busy_s)
