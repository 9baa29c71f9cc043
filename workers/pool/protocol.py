"""What the driver sees of evaluators: a pool that runs tasks, what its evaluators are doing, and
what went wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pruning.importance.channel_order import ChannelOrder
from pruning.scoring.arithmetic import Arithmetic
from workers.pool.faults import FaultLog
from workers.pool.task_times import TaskTimeModel
from workers.tasks import BenchmarkSpec, EvaluatorInfo, EvaluatorSpec, Result, SpeedSpec, Task

Answer = tuple[Task, Result]
State = Literal["waiting for resources", "loading", "ready", "working"]

Spec = EvaluatorSpec | BenchmarkSpec | SpeedSpec


class AnyEvaluator(Protocol):
    """What a pool hands tasks to: an `Evaluator` of shapes, a `BenchmarkEvaluator`, a
    `SpeedEvaluator`, a `LatencyEvaluator`.
    """

    def describe(self) -> EvaluatorInfo: ...

    def set_order(self, order: ChannelOrder) -> None: ...

    def run(self, task: Task) -> Result: ...


EvaluatorKind = Callable[..., AnyEvaluator]
"""The class of an evaluator: takes its spec, the channel order if that is known, and where Ray does
not decide it, `num_gpus`.
"""


class Pool(Protocol):
    """Something that runs tasks. The driver knows no more than this."""

    task_times: TaskTimeModel
    faults: FaultLog

    @property
    def num_evaluators(self) -> int:
        """Evaluators that are ready or at work."""

    def run(self, tasks: Sequence[Task]) -> Iterator[list[Answer]]:
        """Yields answers as they come, about every second if only an empty list.

        A task may be answered in parts: every candidate of it exactly once.
        """

    def set_order(self, order: ChannelOrder) -> None:
        """Sorts the weights of every evaluator, of those that start later too."""

    def wait(self) -> Iterator[None]:
        """Until the first evaluator is ready; yields about every second."""

    @property
    def arithmetic(self) -> Arithmetic:
        """What the first evaluator computes with; known when that is ready."""

    def states(self) -> list[EvaluatorState]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class EvaluatorState:
    """What an evaluator is doing. `info` is None until it has started."""

    number: int
    state: State
    info: EvaluatorInfo | None
    task: str
    num_tasks: int
    busy_s: float
