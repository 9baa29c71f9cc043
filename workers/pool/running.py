"""A task that was handed out, and who works on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.pool.task_times import TaskTimeModel
from workers.prefix import PrefixKey
from workers.tasks import ScoreTask, Task


def prefix_key(task: Task) -> PrefixKey | None:
    """The prefix that an evaluator holds after a task."""
    return task.prefix_key if isinstance(task, ScoreTask) else None


@dataclass(frozen=True, slots=True)
class Holder:
    """An evaluator's hold on a task.

    Args:
        since: when it was handed out, in seconds on the pool's clock.
        held: the prefix that it had from its last task.
        expected_s: what it should take; None: nobody knew then.
    """

    since: float
    held: PrefixKey | None
    expected_s: float | None


@dataclass(slots=True, eq=False)
class Running:
    """A task and the evaluators that work on it, by their numbers: one, or two when it was handed
    out a second time because the first is late.
    """

    task: Task
    holders: dict[int, Holder] = field(default_factory=dict)

    def hold(
        self, evaluator: int, held: PrefixKey | None, now: float, times: TaskTimeModel
    ) -> None:
        """An evaluator begins, which has the prefix `held` from its last task."""
        known = times.knows(self.task)
        expected_s = times.expected_s(evaluator, self.task, held) if known else None
        self.holders[evaluator] = Holder(now, held, expected_s)

    def expected_s(self, evaluator: int, times: TaskTimeModel) -> float:
        """What a holder should take: as was known when it began, else as is known now."""
        holder = self.holders[evaluator]
        if holder.expected_s is not None:
            return holder.expected_s
        return times.expected_s(evaluator, self.task, holder.held)

    def since(self) -> float:
        """When the first of its holders began."""
        return min(holder.since for holder in self.holders.values())

    def due(self, times: TaskTimeModel) -> float:
        """When the first of its holders should be done."""
        return min(
            holder.since + self.expected_s(evaluator, times)
            for evaluator, holder in self.holders.items()
        )
