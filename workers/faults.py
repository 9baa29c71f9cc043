"""What to do about a failure: a pure function of what happened. The pool carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal


class WorkersLost(RuntimeError):
    """The evaluators cannot go on. Everything that they had answered is stored."""


class Decision(Enum):
    """What happens next."""

    RETRY = "its task goes to another evaluator"
    ABORT = "giving up"


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure.

    `worker_lost`: the process died, hung or ran out of memory; `task_error`: the task raised; `start_failed`: an evaluator did not start.
    `count` is how often that happened to this task, or how many starts failed in a row.
    """

    kind: Literal["worker_lost", "task_error", "start_failed"]
    count: int
    cause: str


@dataclass(frozen=True, slots=True)
class FaultPolicy:
    """How often each failure is tried again. A task that kills its evaluators must not kill them for ever."""

    max_lost_per_task: int = 3
    max_errors_per_task: int = 2
    max_failed_starts: int = 3

    def decide(self, failure: Failure) -> Decision:
        limits = {"worker_lost": self.max_lost_per_task, "task_error": self.max_errors_per_task, "start_failed": self.max_failed_starts}
        return Decision.ABORT if failure.count >= limits[failure.kind] else Decision.RETRY
