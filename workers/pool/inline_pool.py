"""The pool's method in this process: for debugging, for tests, and for machines where one process
is enough.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Self

import torch

from pruning.importance.channel_order import ChannelOrder
from pruning.scoring.arithmetic import Arithmetic
from workers.evaluators.shapes import Evaluator
from workers.pool.faults import FaultLog
from workers.pool.protocol import Answer, EvaluatorKind, EvaluatorState, Spec
from workers.pool.running import prefix_key
from workers.pool.schedule import Schedule
from workers.pool.task_times import TaskTimeModel
from workers.prefix import PrefixKey
from workers.tasks import EvaluatorInfo, ScoreResult, Task


class InlinePool:
    """One evaluator in this process; tasks run one after the other.

    Args:
        kind: the class of the evaluator.
        num_gpus: GPUs that it uses, at most; None: all that this process sees.
    """

    num_evaluators = 1

    def __init__(
        self, spec: Spec, *, kind: EvaluatorKind = Evaluator, num_gpus: int | None = None
    ) -> None:
        self._threads_before = torch.get_num_threads()
        try:
            self.evaluator = kind(spec, None, num_gpus=num_gpus)
        except BaseException:
            self.close()
            raise
        self.task_times = TaskTimeModel(spec.checkpoint.config().num_hidden_layers)
        self.faults = FaultLog()
        self._busy_s = 0.0
        self._num_tasks = 0
        self._held: PrefixKey | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_order(self, order: ChannelOrder) -> None:
        self.evaluator.set_order(order)

    def run(self, tasks: Sequence[Task]) -> Iterator[list[Answer]]:
        schedule = Schedule(tasks, self.task_times)
        while (running := schedule.next(0, 1, self._held, time.monotonic())) is not None:
            started = time.monotonic()
            result = self.evaluator.run(running.task)
            now = time.monotonic()
            self._busy_s += now - started
            self._num_tasks += 1
            self.faults.num_oom_splits += isinstance(result, ScoreResult) and result.oom_split
            schedule.done(0, running, result, now)
            self._held = prefix_key(running.task)
            yield [(running.task, result)]

    def wait(self) -> Iterator[None]:
        yield from ()

    @property
    def arithmetic(self) -> Arithmetic:
        return self.evaluator.describe().arithmetic

    def describe(self) -> list[EvaluatorInfo]:
        return [self.evaluator.describe()]

    def states(self) -> list[EvaluatorState]:
        return [
            EvaluatorState(0, "ready", self.evaluator.describe(), "", self._num_tasks, self._busy_s)
        ]

    def close(self) -> None:
        """The process has as many CPU threads as before."""
        torch.set_num_threads(self._threads_before)
