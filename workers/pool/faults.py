"""What to do about a failure: a pure function of what happened. The pool carries it out."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

FaultKind = Literal[
    "evaluator lost", "node lost", "out of memory", "late", "task error", "start failed"
]


class WorkersLost(RuntimeError):
    """The evaluators cannot go on. Everything that they had answered is stored."""


class Decision(Enum):
    """What happens next."""

    RETRY = "another one takes its place"
    BACK_OFF = "the search goes on without it; another start is tried later"
    ABORT = "giving up"


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure.

    Args:
        kind: `evaluator lost`: its process died; `node lost`: its machine did; `out of memory`: the
            system or Ray's memory monitor killed it; `late`: no answer in time; `task error`: the
            task raised; `start failed`: an evaluator did not start.
        count: how often a candidate of its task has failed by now, or how many starts failed in a
            row.
        cause: in words.
        others_ready: whether other evaluators are there to go on.
    """

    kind: FaultKind
    count: int
    cause: str
    others_ready: bool = False


@dataclass(frozen=True, slots=True)
class FaultPolicy:
    """How often each failure is tried again.

    A candidate that kills its evaluators must not kill them for ever; a machine that goes blames no
    candidate.
    """

    max_lost_per_candidate: int = 3
    max_errors_per_candidate: int = 2
    max_failed_starts: int = 3
    first_back_off_s: float = 30.0
    longest_back_off_s: float = 600.0

    def decide(self, failure: Failure) -> Decision:
        if failure.kind == "node lost":
            return Decision.RETRY
        if failure.kind == "start failed":
            if failure.count < self.max_failed_starts:
                return Decision.RETRY
            return Decision.BACK_OFF if failure.others_ready else Decision.ABORT
        limit = (
            self.max_errors_per_candidate
            if failure.kind == "task error"
            else self.max_lost_per_candidate
        )
        return Decision.ABORT if failure.count >= limit else Decision.RETRY

    def back_off_s(self, count: int) -> float:
        """Seconds before the next start after `count` failed ones in a row: doubled each time."""
        doublings = min(max(0, count - self.max_failed_starts), 30)
        return min(self.longest_back_off_s, self.first_back_off_s * 2.0**doublings)

    @staticmethod
    def blames_task(kind: FaultKind) -> bool:
        return kind != "node lost"


@dataclass(frozen=True, slots=True)
class Fault:
    """One failure and what was done about it. `timestamp` in seconds since 1970."""

    timestamp: float
    kind: FaultKind
    evaluator: str
    cause: str
    decision: str


@dataclass(slots=True)
class FaultLog:
    """What went wrong so far.

    Args:
        counts: of every kind.
        recent: the last ones.
        num_lost_evaluations: candidates that were in flight on an evaluator that did not answer,
            and were scored again.
        num_speculative_tasks: handed to a second evaluator because the first was late.
        num_oom_splits: tasks whose batch did not fit into memory, see `ScoreResult.oom_split`.
    """

    counts: Counter[FaultKind] = field(default_factory=Counter)
    recent: deque[Fault] = field(default_factory=lambda: deque(maxlen=50))
    num_lost_evaluations: int = 0
    num_speculative_tasks: int = 0
    num_oom_splits: int = 0

    def counters(self) -> dict[str, Any]:
        """The fields of `summary.json` and `status.json` that count faults.

        `copied_tasks` and `halved_tasks` are the names of version 0.1 for the two before them.
        """
        return {
            "faults": dict(self.counts),
            "lost_evaluations": self.num_lost_evaluations,
            "speculative_tasks": self.num_speculative_tasks,
            "oom_splits": self.num_oom_splits,
            "copied_tasks": self.num_speculative_tasks,
            "halved_tasks": self.num_oom_splits,
        }

    def add(self, fault: Fault) -> None:
        self.counts[fault.kind] += 1
        self.recent.append(fault)
