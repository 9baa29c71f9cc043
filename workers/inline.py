"""The pool's method in this process: for debugging, for tests, and for machines where one process is enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

from pruning.importance import ChannelOrder
from workers.evaluator import Evaluator
from workers.tasks import EvaluatorInfo, EvaluatorSpec, Result, Task


class InlinePool:
    """One evaluator in this process; tasks run one after the other."""

    num_evaluators = 1

    def __init__(self, spec: EvaluatorSpec) -> None:
        self.evaluator = Evaluator(spec)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_order(self, order: ChannelOrder) -> None:
        self.evaluator.set_order(order)

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        for index, task in enumerate(tasks):
            yield index, self.evaluator.run(task)

    def device(self) -> str:
        return self.evaluator.describe().device

    def describe(self) -> list[EvaluatorInfo]:
        return [self.evaluator.describe()]

    def close(self) -> None:
        """Nothing to stop."""
