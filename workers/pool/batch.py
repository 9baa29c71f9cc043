"""What is left to score on one batch."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from workers.pool.running import Running
from workers.pool.task_times import TaskTimeModel
from workers.tasks import Candidate, ScoreTask


@dataclass(slots=True, eq=False)
class Batch:
    """The candidates of one task that are left to hand out, the longest first.

    Args:
        whole: the task as it was given.
        running: parts of it that evaluators are at work on.
    """

    whole: ScoreTask
    times: TaskTimeModel
    running: list[Running] = field(default_factory=list)
    left: list[Candidate] = field(init=False)
    _layers_left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = sorted(self.whole.candidates, key=_first_layer)
        self._layers_left = sum(map(self._num_layers, self.left))

    def take(self, candidates: Sequence[Candidate]) -> ScoreTask:
        """A task of some that are left, and are so no longer."""
        for candidate in candidates:
            self.left.remove(candidate)
        self._layers_left -= sum(map(self._num_layers, candidates))
        return replace(self.whole, candidates=tuple(candidates))

    def give_back(self, candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            insort(self.left, candidate, key=_first_layer)
        self._layers_left += sum(map(self._num_layers, candidates))

    def first(self, seconds: float, limit: int | None = None) -> list[Candidate]:
        """The first that are left, as many as fit into the time, `limit` at most; at least one."""
        found: list[Candidate] = []
        total = 0.0
        for candidate in self.left[:limit]:
            total += self.candidate_s(candidate)
            if found and total > seconds:
                break
            found.append(candidate)
        return found

    def candidate_s(self, candidate: Candidate) -> float:
        """What an average evaluator that has the prefix needs for it."""
        return self.times.work_s(self._num_layers(candidate), 1)

    @property
    def left_s(self) -> float:
        """The same for all that are left."""
        return self.times.work_s(self._layers_left, len(self.left))

    def done_s(self, now: float) -> float:
        """Seconds until those at work on it would be done with all of it; infinite if nobody is."""
        if not self.running:
            return math.inf
        working = sum(max(0.0, running.due(self.times) - now) for running in self.running)
        return (working + self.left_s) / len(self.running)

    def _num_layers(self, candidate: Candidate) -> int:
        return self.times.num_layers - candidate.layer if candidate else 0


def _first_layer(candidate: Candidate) -> float:
    """What the time of a candidate falls with; the base itself runs no layer."""
    return candidate.layer if candidate else math.inf
