"""A task that was handed out, and who works on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.pool.task_times import TaskTimeModel
from workers.tasks import ScoreTask, Task

PrefixKey = tuple[str, int, str]


def prefix_key(task: Task) -> PrefixKey | None:
    """The prefix that an evaluator holds after a task."""
    return task.prefix_key if isinstance(task, ScoreTask) else None


def needs_prefix(task: Task, held: PrefixKey | None) -> bool:
    """Whether an evaluator that holds a prefix, or none, must run another one for a task."""
    return held is None or prefix_key(task) != held


@dataclass(frozen=True, slots=True)
class Holder:
    """An evaluator's hold on a task.

    Args:
        since: when it was handed out, in seconds on the pool's clock.
        with_prefix: it must run the prefix too.
        expected_s: what it should take; None: nobody knew then.
    """

    since: float
    with_prefix: bool
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
        with_prefix, expected_s = needs_prefix(self.task, held), None
        if times.knows(self.task):
            expected_s = times.expected_s(evaluator, self.task, with_prefix=with_prefix)
        self.holders[evaluator] = Holder(now, with_prefix, expected_s)

    def expected_s(self, evaluator: int, times: TaskTimeModel) -> float:
        """What a holder should take: as was known when it began, else as is known now."""
        holder = self.holders[evaluator]
        if holder.expected_s is not None:
            return holder.expected_s
        return times.expected_s(evaluator, self.task, with_prefix=holder.with_prefix)

    def since(self) -> float:
        """When the first of its holders began."""
        return min(holder.since for holder in self.holders.values())

    def due(self, times: TaskTimeModel) -> float:
        """When the first of its holders should be done."""
        return min(
            holder.since + self.expected_s(evaluator, times)
            for evaluator, holder in self.holders.items()
        )
