"""Which evaluator gets which candidates next.

Bookkeeping only: no Ray, no clock of its own, so that a test can run a cluster in virtual time.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from workers.pool.task_times import TaskTimeModel
from workers.tasks import Candidate, RequestTask, ScoreTask, Task, WindowTask

MAX_TASK_S = 10.0
"""No task is longer than this, if it has more than one candidate: so much work is lost with an
evaluator.
"""

MIN_TASK_S = 0.05
"""Shorter ones are joined, if there are more: handing one out costs a millisecond or two."""

_SHARE = 1.5
"""A task takes one part in so many of what is left for each evaluator: large ones first, small ones
at the end even the finish out.
"""

_SLOW = 2.0
"""Times an average evaluator's; below, evaluators are treated alike."""

_JITTER_S = 0.25
"""Lateness that means nothing on a busy machine."""

_UNMEASURED_CANDIDATES = 2
"""Candidates of a task as long as nobody knows what one costs."""

PrefixKey = tuple[str, int, str]


@dataclass(slots=True, eq=False)
class Running:
    """A task and the evaluators that work on it: one, or two when it was handed out again because
    the first is late.
    """

    task: Task
    holders: dict[int, float] = field(
        default_factory=dict
    )  # evaluator -> when it is expected to be done


@dataclass(slots=True)
class _Batch:
    """What is left of one task as it was given: candidates by falling cost, and the layers that
    they would run.
    """

    whole: ScoreTask
    left: list[Candidate]
    layers_left: int
    running: list[Running] = field(default_factory=list)


class Schedule:
    """Hands out the candidates of some tasks in chunks, each to one evaluator at a time.

    An evaluator stays with the batch whose prefix it has. Chunks are sized by expected seconds,
    longest candidates first. When nothing is left, an idle evaluator gets a copy of a task that is
    late: both answers are equal, the first one counts.

    Args:
        tasks: one for each batch, with all candidates to be scored on it; other kinds of task are
            handed out whole, the largest first.
        task_times: what a task is expected to take.
    """

    def __init__(self, tasks: Sequence[Task], task_times: TaskTimeModel) -> None:
        self.task_times = task_times
        task_times.decay()
        self._whole = deque(
            sorted(
                (task for task in tasks if not isinstance(task, ScoreTask)),
                key=_size_of_whole,
                reverse=True,
            )
        )
        self._batches = {
            task.prefix_key: _Batch(
                task,
                sorted(task.candidates, key=_first_layer),
                sum(map(self._num_layers, task.candidates)),
            )
            for task in tasks
            if isinstance(task, ScoreTask) and task.candidates
        }
        self._running: list[Running] = []
        self._failures: Counter[Hashable] = (
            Counter()
        )  # of (prefix key, candidate), or of a task that is handed out whole
        self._errors: Counter[Hashable] = Counter()

    @property
    def finished(self) -> bool:
        return (
            not self._whole
            and not self._running
            and not any(batch.left for batch in self._batches.values())
        )

    @property
    def num_running(self) -> int:
        """Candidates that evaluators are at work on; requests and windows too."""
        return sum(running.task.num_evaluations for running in self._running)

    def next(
        self, evaluator: int, num_evaluators: int, held: PrefixKey | None, now: float
    ) -> Running | None:
        """Work for an idle evaluator; None if there is none that it should do.

        Args:
            num_evaluators: that share the work.
            held: the prefix that this evaluator has from its last task.
            now: seconds on the clock that `Running.holders` uses.
        """
        if self._whole and self._leaves_whole(evaluator, num_evaluators):
            return None
        task: Task | None = self._whole.popleft() if self._whole else None
        if task is None:
            batch = self._batch_for(held, now)
            if batch is None:
                return self._speculate(evaluator, held, now)
            if self._would_be_last(evaluator, num_evaluators, batch, held):
                return None
            task = self._chunk(batch, evaluator, num_evaluators)
        running = Running(task)
        self._running.append(running)
        if isinstance(task, ScoreTask):
            self._batches[task.prefix_key].running.append(running)
        self._hold(running, evaluator, held, now)
        return running

    def continues(self, held: PrefixKey | None) -> bool:
        """Whether there is more to do on the batch whose prefix an evaluator has."""
        return held is not None and held in self._batches and bool(self._batches[held].left)

    def done(self, evaluator: int, running: Running, result: object) -> bool:
        """Takes an answer; false if another evaluator had given it already."""
        self.task_times.observe(evaluator, running.task, result)
        if running not in self._running:
            return False
        self._running.remove(running)
        self._release(running)
        return True

    def failed(
        self, evaluator: int, running: Running, *, blame: bool = True, error: bool = False
    ) -> int:
        """Takes a task back from an evaluator that did not finish it.

        Args:
            blame: whether the task may be at fault. After a second failure its candidates are
                handed out one by one, to find the one that is.
            error: it raised, which is counted apart from evaluators that were lost: one of each
                makes neither twice.

        Returns:
            How often a candidate of it has failed by now; 0 if somebody else is still at work on
            it.
        """
        if running not in self._running:
            return 0
        del running.holders[evaluator]
        task = running.task
        keys: list[Hashable] = (
            [(task.prefix_key, candidate) for candidate in task.candidates]
            if isinstance(task, ScoreTask)
            else [task]
        )
        if blame:
            self._failures.update(keys)
            self._errors.update(keys if error else ())
        if running.holders:
            return 0
        self._running.remove(running)
        self._release(running)
        if isinstance(running.task, ScoreTask):
            batch = self._batches[running.task.prefix_key]
            batch.layers_left += sum(map(self._num_layers, running.task.candidates))
            for candidate in running.task.candidates:
                insort(batch.left, candidate, key=_first_layer)
        else:
            self._whole.appendleft(running.task)
        return max(
            self._errors[key] if error else self._failures[key] - self._errors[key] for key in keys
        )

    def expected_s(self, evaluator: int, running: Running, *, with_prefix: bool = True) -> float:
        return self.task_times.task_s(
            running.task, with_prefix=with_prefix
        ) * self.task_times.straggler_factor(evaluator)

    def _leaves_whole(self, evaluator: int, num_evaluators: int) -> bool:
        """An evaluator that is so slow that its next task would end after everything else leaves it
        to the others.
        """
        factor = self.task_times.straggler_factor(evaluator)
        if factor < _SLOW or not self._running or not self.task_times.knows(self._whole[0]):
            return False
        return (
            self.task_times.task_s(self._whole[0]) * factor
            > sum(map(self.task_times.task_s, self._whole)) / num_evaluators
        )

    def _num_layers(self, candidate: Candidate) -> int:
        return self.task_times.num_layers - candidate.layer if candidate else 0

    def _left_s(self, batch: _Batch) -> float:
        return self.task_times.work_s(batch.layers_left, len(batch.left))

    def _would_be_last(
        self, evaluator: int, num_evaluators: int, batch: _Batch, held: PrefixKey | None
    ) -> bool:
        """An evaluator that is so slow that its next candidate would end after everything else
        leaves it to the others.
        """
        factor = self.task_times.straggler_factor(evaluator)
        if factor < _SLOW or not self._running:
            return False
        mine = self.task_times.work_s(self._num_layers(batch.left[0]), 1) + (
            0.0 if held == batch.whole.prefix_key else self.task_times.prefix_s()
        )
        return mine * factor > sum(map(self._left_s, self._batches.values())) / num_evaluators

    def _batch_for(self, held: PrefixKey | None, now: float) -> _Batch | None:
        """The batch whose prefix is there; else the one that will take longest, if another pair of
        hands would begin before the others are done.
        """
        own = self._batches.get(held) if held else None
        if own and own.left:
            return own
        waiting = [batch for batch in self._batches.values() if batch.left]
        if not waiting:
            return None
        done_s = {id(batch): self._done_s(batch, now) for batch in waiting}
        longest = max(waiting, key=lambda batch: done_s[id(batch)])
        mine = self.task_times.prefix_s() + self.task_times.work_s(
            self._num_layers(longest.left[0]), 1
        )
        return longest if mine < done_s[id(longest)] else None

    def _done_s(self, batch: _Batch, now: float) -> float:
        """When those that work on a batch would be done with all of it; infinite if nobody does."""
        if not batch.running:
            return math.inf
        working = sum(max(0.0, min(running.holders.values()) - now) for running in batch.running)
        return (working + self._left_s(batch)) / len(batch.running)

    def _chunk(self, batch: _Batch, evaluator: int, num_evaluators: int) -> ScoreTask:
        suspects = (
            [
                candidate
                for candidate in batch.left
                if self._failures[batch.whole.prefix_key, candidate] >= 2
            ]
            if self._failures
            else []
        )
        if suspects:
            return self._take(batch, suspects[:1])
        sharing = max(
            1.0, num_evaluators / sum(bool(other.left) for other in self._batches.values())
        )
        wanted = (
            self._left_s(batch)
            / (sharing * _SHARE if num_evaluators > 1 else 1.0)
            / self.task_times.straggler_factor(evaluator)
        )
        limit = len(batch.left)
        if self.task_times.measured:
            wanted = min(max(wanted, MIN_TASK_S), MAX_TASK_S)
        else:
            limit = _UNMEASURED_CANDIDATES
        taken: list[Candidate] = []
        seconds = 0.0
        for candidate in batch.left[:limit]:
            cost = self.task_times.work_s(self._num_layers(candidate), 1)
            if taken and seconds + cost > wanted:
                break
            taken.append(candidate)
            seconds += cost
        return self._take(batch, taken)

    def _take(self, batch: _Batch, taken: Sequence[Candidate]) -> ScoreTask:
        for candidate in taken:
            batch.left.remove(candidate)
        batch.layers_left -= sum(map(self._num_layers, taken))
        return replace(batch.whole, candidates=tuple(taken))

    def _speculate(self, evaluator: int, held: PrefixKey | None, now: float) -> Running | None:
        """The task that is expected last, if this evaluator would have it done well before."""
        if not self._running:
            return None
        alone = (
            running
            for running in self._running
            if len(running.holders) == 1 and self.task_times.knows(running.task)
        )
        late = max(alone, key=lambda running: self._remaining_s(running, now), default=None)
        if late is None or evaluator in late.holders:
            return None
        mine = self.expected_s(
            evaluator,
            late,
            with_prefix=not isinstance(late.task, ScoreTask) or late.task.prefix_key != held,
        )
        if self._remaining_s(late, now) < 1.5 * mine + MIN_TASK_S:
            return None
        self._hold(late, evaluator, held, now)
        return late

    def _remaining_s(self, running: Running, now: float) -> float:
        """What is overdue is taken to need as long again as it is overdue; when that is as long as
        it should have taken, its evaluator may be stuck.
        """
        [(evaluator, due)] = running.holders.items()
        if now <= due:
            return due - now
        overdue, whole = now - due, self.expected_s(evaluator, running)
        return overdue + (10 * whole if overdue > max(whole, _JITTER_S) else 0.0)

    def _hold(self, running: Running, evaluator: int, held: PrefixKey | None, now: float) -> None:
        with_prefix = not isinstance(running.task, ScoreTask) or running.task.prefix_key != held
        running.holders[evaluator] = now + self.expected_s(
            evaluator, running, with_prefix=with_prefix
        )

    def _release(self, running: Running) -> None:
        if isinstance(running.task, ScoreTask):
            self._batches[running.task.prefix_key].running.remove(running)


def _first_layer(candidate: Candidate) -> float:
    """What the cost of a candidate falls with; the base itself runs no layer."""
    return candidate.layer if candidate else math.inf


def _size_of_whole(task: Task) -> int:
    """So that the last ones are short, and all evaluators are done at about the same time."""
    return task.size if isinstance(task, (RequestTask, WindowTask)) else 0
