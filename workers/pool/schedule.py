"""Which evaluator gets which candidates next.

Bookkeeping only: no Ray, no clock of its own, so that a test can run a cluster in virtual time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Sequence

from workers.pool.batch import Batch
from workers.pool.running import Running
from workers.pool.task_times import TaskTimeModel, work
from workers.prefix import PrefixKey, missing_layers
from workers.tasks import Candidate, ScoreTask, Task, WholeTask

MAX_TASK_S = 10.0
"""No task is longer than this, if it has more than one candidate: so much work is lost with an
evaluator.
"""

MIN_TASK_S = 0.05
"""Shorter ones are joined, if there are more: handing one out costs a millisecond or two."""

HANDOUT_S = 0.002
"""What that costs, measured: while one evaluator works, the driver hands out to all others."""

_SHARE = 1.5
"""A task takes one part in so many of what is left for each evaluator: large ones first, small ones
at the end even the finish out.
"""

_STRAGGLER = 2.0
"""Times an average evaluator's; below, evaluators are treated alike."""

_JITTER_S = 0.25
"""Lateness that means nothing on a busy machine."""

_UNMEASURED_CANDIDATES = 2
"""Candidates of a task as long as nobody knows what one takes."""


class Schedule:
    """Hands out the candidates of some tasks in chunks, each to one evaluator at a time.

    An evaluator stays with the batch whose prefix it has, that of the step before, too: the bases
    of two steps differ in one layer, and those below need not run again. Chunks are sized by
    expected seconds, longest candidates first. When nothing is left, an idle evaluator runs a late
    task a second time (speculative execution): both answers are equal, the first one counts.

    Args:
        tasks: one for each batch, with all candidates to be scored on it; other kinds of task are
            handed out whole, the largest first, so that all evaluators are done at about the same
            time.
        task_times: what a task is expected to take.

    Raises:
        ValueError: two tasks are for the same batch of the same shape.
    """

    def __init__(self, tasks: Sequence[Task], task_times: TaskTimeModel) -> None:
        self.task_times = task_times
        task_times.decay()
        whole = [task for task in tasks if not isinstance(task, ScoreTask)]
        self._whole: deque[WholeTask] = deque(
            sorted(whole, key=lambda task: task.size, reverse=True)
        )
        self._batches: dict[PrefixKey, Batch] = {}
        # by calibration set and number of the batch: one, unless whole shapes are scored
        self._of_text: dict[tuple[str, int], list[Batch]] = {}
        for task in tasks:
            if isinstance(task, ScoreTask) and task.candidates:
                if task.prefix_key in self._batches:
                    raise ValueError(f"two tasks for {task.prefix_key}; give one for each batch")
                batch = Batch(task, task_times)
                self._batches[task.prefix_key] = batch
                self._of_text.setdefault(task.prefix_key[:2], []).append(batch)
        works = [work(batch.whole, task_times.num_layers) for batch in self._batches.values()]
        self._whole_work = (sum(each[0] for each in works), sum(each[1] for each in works))
        self._running: list[Running] = []
        # by (prefix key, candidate), or task that is handed out whole
        self._failures: Counter[Hashable] = Counter()
        self._errors: Counter[Hashable] = Counter()

    @property
    def finished(self) -> bool:
        return not self._running and self.handed_out

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
            now: in seconds, on any clock.
        """
        task: Task
        if self._whole:
            if self._whole_would_be_last(evaluator, num_evaluators):
                return None
            task = self._whole.popleft()
        else:
            batch = self._batch_for(held, now)
            if batch is None:
                return self._second_run(evaluator, held, now)
            if self._would_be_last(evaluator, num_evaluators, batch, held):
                return None
            task = batch.take(self._chunk(batch, evaluator, num_evaluators))
        running = Running(task)
        running.hold(evaluator, held, now, self.task_times)
        self._running.append(running)
        if isinstance(task, ScoreTask):
            self._batches[task.prefix_key].running.append(running)
        return running

    @property
    def handed_out(self) -> bool:
        """Whether evaluators are at work on all that is left."""
        return not self._whole and not self._waiting()

    def continues(self, held: PrefixKey | None) -> bool:
        """Whether there is more to do on the batch whose prefix an evaluator has."""
        return self._own(held) is not None

    def done(self, evaluator: int, running: Running, result: object, now: float) -> bool:
        """Takes an answer; false if another evaluator had given it already."""
        seconds = now - running.holders[evaluator].since
        self.task_times.observe(evaluator, running.task, result, seconds)
        if running not in self._running:
            return False
        self._end(running)
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
        task, keys = running.task, _keys(running.task)
        if blame:
            self._failures.update(keys)
            self._errors.update(keys if error else ())
        if running.holders:
            return 0
        self._end(running)
        if isinstance(task, ScoreTask):
            self._batches[task.prefix_key].give_back(task.candidates)
        else:
            self._whole.appendleft(task)
        if error:
            return max(self._errors[key] for key in keys)
        return max(self._failures[key] - self._errors[key] for key in keys)

    def limit_s(self, evaluator: int, running: Running) -> float:
        """After so long without an answer, an evaluator is taken to hang."""
        num_failures = max(self._failures[key] for key in _keys(running.task))
        return self.task_times.limit_s(evaluator, running.task, num_failures=num_failures)

    def _waiting(self) -> list[Batch]:
        return [batch for batch in self._batches.values() if batch.left]

    def _end(self, running: Running) -> None:
        self._running.remove(running)
        if isinstance(running.task, ScoreTask):
            self._batches[running.task.prefix_key].running.remove(running)

    def _is_straggler(self, evaluator: int) -> bool:
        """Whether it is so slow that others might better do its work, and there are others."""
        return bool(self._running) and self.task_times.straggler_factor(evaluator) >= _STRAGGLER

    def _whole_would_be_last(self, evaluator: int, num_evaluators: int) -> bool:
        """Whether its next task would end after everything else; then it is left to the others. One
        whose time nobody knows is taken to need none.
        """
        if not self._is_straggler(evaluator):
            return False
        all_s = sum(map(self.task_times.task_s, self._whole)) / num_evaluators
        return self.task_times.expected_s(evaluator, self._whole[0]) > all_s

    def _would_be_last(
        self, evaluator: int, num_evaluators: int, batch: Batch, held: PrefixKey | None
    ) -> bool:
        """The same for its next candidate."""
        if not self._is_straggler(evaluator):
            return False
        mine = batch.candidate_s(batch.left[0])
        mine += self._prefix_s(batch, held)
        all_s = sum(batch.left_s for batch in self._batches.values()) / num_evaluators
        return mine * self.task_times.straggler_factor(evaluator) > all_s

    def _batch_for(self, held: PrefixKey | None, now: float) -> Batch | None:
        """The batch whose prefix is there; else the one that will take longest, if another pair of
        hands would begin before the others are done.
        """
        own = self._own(held)
        if own is not None:
            return own
        waiting = self._waiting()
        if not waiting:
            return None
        done_s = {id(batch): batch.done_s(now) for batch in waiting}
        longest = max(waiting, key=lambda batch: done_s[id(batch)])
        mine = self.task_times.prefix_s() + longest.candidate_s(longest.left[0])
        return longest if mine < done_s[id(longest)] else None

    def _own(self, held: PrefixKey | None) -> Batch | None:
        """What is left on the batch of which an evaluator holds a prefix: of the base that has most
        of its layers in common with that.
        """
        if held is None:
            return None
        same = self._batches.get(held)
        if same is not None and same.left:
            return same
        left = [batch for batch in self._of_text.get(held[:2], ()) if batch.left]
        return min(left, key=lambda batch: self._prefix_s(batch, held), default=None)

    def _prefix_s(self, batch: Batch, held: PrefixKey | None) -> float:
        """What an average evaluator that holds a prefix needs to have that of a batch."""
        num_layers = self.task_times.num_layers
        return self.task_times.work_s(missing_layers(batch.whole.prefix_key, held, num_layers), 0)

    def _chunk(self, batch: Batch, evaluator: int, num_evaluators: int) -> Sequence[Candidate]:
        """What an evaluator gets of a batch."""
        if self._failures:
            suspects = [each for each in batch.left if self._is_suspect(batch, each)]
            if suspects:
                return suspects[:1]
        wanted_s = batch.left_s / self.task_times.straggler_factor(evaluator)
        if num_evaluators > 1:
            wanted_s /= _SHARE * max(1.0, num_evaluators / len(self._waiting()))
        if not self.task_times.measured:
            return batch.first(wanted_s, _UNMEASURED_CANDIDATES)
        share_s = self.task_times.work_s(*self._whole_work) / num_evaluators
        least_s = max(MIN_TASK_S, min(HANDOUT_S * num_evaluators, share_s))
        return batch.first(min(max(wanted_s, least_s), MAX_TASK_S))

    def _is_suspect(self, batch: Batch, candidate: Candidate) -> bool:
        return self._failures[batch.whole.prefix_key, candidate] >= 2

    def _second_run(self, evaluator: int, held: PrefixKey | None, now: float) -> Running | None:
        """A late task, for an evaluator that has nothing else to do: the one expected last, if it
        would be done here well before; else one whose time nobody knows and that runs for long.
        """
        alone = [running for running in self._running if len(running.holders) == 1]
        known = [running for running in alone if self.task_times.knows(running.task)]
        late = max(known, key=lambda running: self._remaining_s(running, now), default=None)
        if late is not None:
            mine_s = self.task_times.expected_s(evaluator, late.task, held)
            if self._remaining_s(late, now) < 1.5 * mine_s + MIN_TASK_S:
                late = None
        if late is None:
            late = self._unknown_for_long(alone, now)
        if late is None or evaluator in late.holders:
            return None
        late.hold(evaluator, held, now, self.task_times)
        return late

    def _remaining_s(self, running: Running, now: float) -> float:
        """What is overdue is taken to need as long again as it is overdue; when that is as long as
        it should have taken, its evaluator may be stuck.
        """
        due = running.due(self.task_times)
        if now <= due:
            return due - now
        [evaluator] = running.holders
        overdue, whole = now - due, self.task_times.expected_s(evaluator, running.task)
        return overdue + (10 * whole if overdue > max(whole, _JITTER_S) else 0.0)

    def _unknown_for_long(self, alone: Sequence[Running], now: float) -> Running | None:
        """Nobody knows whether its evaluator hangs."""
        unknown = [running for running in alone if not self.task_times.knows(running.task)]
        oldest = min(unknown, key=Running.since, default=None)
        if oldest is None or now - oldest.since() < self.task_times.patience_s(oldest.task):
            return None
        return oldest


def _keys(task: Task) -> Sequence[Hashable]:
    """What failures are counted by."""
    if isinstance(task, ScoreTask):
        return [(task.prefix_key, candidate) for candidate in task.candidates]
    return [task]
