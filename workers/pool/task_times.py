"""How long a task takes, learnt from the tasks before it."""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.tasks import (
    AnswerResult,
    AnswerTask,
    RequestTask,
    ScoreResult,
    ScoreTask,
    Task,
    WindowTask,
)

_MEMORY = 0.98
"""Weight of what was known when one more task is seen: about the last fifty count."""

_FACTOR_MEMORY = 0.7
"""Weight of an evaluator's old straggler factor when one more of its tasks is seen."""

_MAX_FACTOR_GROWTH = 4.0
"""Times as slow as before: one task says no more.

It may have met a machine that was busy for a moment.
"""

_DECAY = 0.1
"""Share by which a straggler factor comes closer to 1 at each step: an evaluator that gets no work
could not show that it is fast again.
"""


@dataclass(slots=True)
class TaskTimeModel:
    """Seconds as a x layers run + b x heads run, fitted to the tasks seen; and for each evaluator
    a straggler factor, how much slower it is than that. Tasks that answer requests or windows take c x their size, with
    a c of its own for each kind.

    Before the first result a layer and a head count 1 each, so that tasks compare, and `measured`
    is false.
    """

    num_layers: int
    measured: bool = False
    _layer_s: float = 1.0
    _head_s: float = 1.0
    _sums: list[float] = field(
        default_factory=lambda: [0.0] * 5
    )  # of l*l, l*h, h*h, l*s, h*s over tasks: the normal equations
    _sizes: dict[str, tuple[float, float]] = field(
        default_factory=dict
    )  # kind -> seconds and size seen
    _straggler_factors: dict[int, float] = field(default_factory=dict)

    def knows(self, task: Task) -> bool:
        """Whether what a task is expected to take is more than a guess."""
        if isinstance(task, (RequestTask, WindowTask)):
            return task.kind in self._sizes
        return self.measured and isinstance(task, ScoreTask)

    def prefix_s(self) -> float:
        return self.work_s(self.num_layers, 0)

    def work_s(self, num_layers: float, num_heads: float) -> float:
        """So many layers and heads, on an average evaluator."""
        return num_layers * self._layer_s + num_heads * self._head_s

    def task_s(self, task: Task, *, with_prefix: bool = True) -> float:
        if isinstance(task, (RequestTask, WindowTask)):
            seconds, size = self._sizes.get(task.kind, (0.0, 1.0))
            return seconds / size * task.size
        if not isinstance(task, ScoreTask):
            return self.prefix_s()
        return self.work_s(*work(task, self.num_layers, with_prefix=with_prefix))

    def straggler_factor(self, evaluator: int) -> float:
        """1 for an average evaluator, 2 for one that takes twice as long."""
        return self._straggler_factors.get(evaluator, 1.0)

    def decay(self) -> None:
        """Brings all straggler factors closer to 1: a new step begins."""
        self._straggler_factors = {
            evaluator: 1 + (1 - _DECAY) * (factor - 1)
            for evaluator, factor in self._straggler_factors.items()
        }

    def observe(self, evaluator: int, task: Task, result: object) -> None:
        """Learns from one task."""
        if isinstance(task, (RequestTask, WindowTask)) and isinstance(result, AnswerResult):
            self._observe_size(evaluator, task, result)
        if not isinstance(task, ScoreTask) or not isinstance(result, ScoreResult):
            return
        expected = self.task_s(task, with_prefix=result.ran_prefix)
        layers, heads = work(task, self.num_layers, with_prefix=result.ran_prefix)
        if self.measured and expected > 0:
            self._compare(evaluator, result.seconds / expected)
        new = (
            layers * layers,
            layers * heads,
            heads * heads,
            layers * result.seconds,
            heads * result.seconds,
        )
        self._sums = [_MEMORY * total + value for total, value in zip(self._sums, new, strict=True)]
        self._fit()

    def _observe_size(self, evaluator: int, task: AnswerTask, result: AnswerResult) -> None:
        expected = self.task_s(task)
        if expected > 0:
            self._compare(evaluator, result.seconds / expected)
        seconds, size = self._sizes.get(task.kind, (0.0, 0.0))
        self._sizes[task.kind] = (_MEMORY * seconds + result.seconds, _MEMORY * size + task.size)

    def _compare(self, evaluator: int, ratio: float) -> None:
        old = self._straggler_factors.get(evaluator, 1.0)
        seen = min(ratio, _MAX_FACTOR_GROWTH * old)
        self._straggler_factors[evaluator] = _FACTOR_MEMORY * old + (1 - _FACTOR_MEMORY) * seen

    def _fit(self) -> None:
        ll, lh, hh, ls, hs = self._sums
        determinant = ll * hh - lh * lh
        layer_s, head_s = (
            (ls * hh - hs * lh) / determinant if determinant > 1e-9 * ll * hh else -1.0,
            0.0,
        )
        if layer_s > 0:
            head_s = (hs * ll - ls * lh) / determinant
        if layer_s <= 0 or head_s < 0:  # tasks too alike to tell the two apart
            layer_s = head_s = (ls + hs) / (ll + 2 * lh + hh)
        self._layer_s, self._head_s = layer_s, head_s
        self.measured = True


def work(task: ScoreTask, num_layers: int, *, with_prefix: bool) -> tuple[float, float]:
    """Layers and heads that a task runs. A task that scores its own base runs the head only."""
    layers = sum(num_layers - candidate.layer for candidate in task.candidates if candidate)
    return float(layers + (num_layers if with_prefix else 0)), float(len(task.candidates))
