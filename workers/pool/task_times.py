"""How long a task takes, learnt from the tasks before it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pruning.costs.accounting import Accounting
from workers.cluster.placement import Placement
from workers.prefix import PrefixKey, missing_layers
from workers.tasks import (
    AnswerResult,
    ClockedTask,
    EvaluatorSpec,
    GenerationTask,
    OrderTask,
    ScoreResult,
    ScoreTask,
    StatisticsTask,
    Task,
    WholeTask,
)

_SLOW_CPU, _SLOW_GPU = 3e9, 1e12
"""FLOP/s of an evaluator that is slow and does not hang: a tenth of a core, or of a small GPU."""

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

_HUNG_TIMES, _HUNG_AT_LEAST_S = 30.0, 60.0
"""An evaluator that needs so many times as long as expected, and at least so long, hangs."""

_UNKNOWN_START_TIMES, _UNKNOWN_AT_LEAST_S = 20.0, 600.0
"""The same where nobody knows what to expect: times the slowest start, and at least so long. Each
evaluator that was given up over a task has the next one get four times as long.
"""
_UNKNOWN_GROWTH = 4.0

_PATIENCE_START_TIMES, _PATIENCE_AT_LEAST_S = 5.0, 60.0
"""After so long, a task whose time nobody knows is handed to a second evaluator that is idle."""


@dataclass(slots=True)
class TaskTimeModel:
    """Seconds of a `ScoreTask` as a x layers run + b x heads run, fitted to the tasks seen; of
    other tasks as c x their size, with a c of its own for each kind; and for each evaluator a
    straggler factor, how much slower it is than that.

    Before the first result a layer and a head count 1 each, so that tasks compare, and `measured`
    is false.

    Args:
        slowest_text_s: what the dense model takes for a whole calibration set on a slow device.
        longest_start_s: until an evaluator was ready, once it had its resources.
    """

    num_layers: int
    slowest_text_s: float = 0.0
    measured: bool = False
    longest_start_s: float = 0.0
    _layer_s: float = 1.0
    _head_s: float = 1.0
    # of l*l, l*h, h*h, l*s, h*s over tasks: the normal equations
    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)
    # kind -> seconds and size seen
    _sizes: dict[str, tuple[float, float]] = field(default_factory=dict)
    _straggler_factors: dict[int, float] = field(default_factory=dict)

    def knows(self, task: Task) -> bool:
        """Whether what a task is expected to take is more than a guess."""
        return self.measured if isinstance(task, ScoreTask) else task.kind in self._sizes

    def prefix_s(self) -> float:
        return self.work_s(self.num_layers, 0)

    def work_s(self, num_layers: float, num_heads: float) -> float:
        """So many layers and heads, on an average evaluator."""
        return num_layers * self._layer_s + num_heads * self._head_s

    def task_s(self, task: Task, held: PrefixKey | None = None) -> float:
        """A whole task, on an average evaluator that holds a prefix; 0 for a kind that was never
        seen.
        """
        if isinstance(task, ScoreTask):
            layers, heads = work(task, self.num_layers)
            return self.work_s(
                layers + missing_layers(task.prefix_key, held, self.num_layers), heads
            )
        seconds, size = self._sizes.get(task.kind, (0.0, 1.0))
        return seconds / size * task.size

    def expected_s(self, evaluator: int, task: Task, held: PrefixKey | None = None) -> float:
        return self.task_s(task, held) * self.straggler_factor(evaluator)

    def limit_s(self, evaluator: int, task: Task, *, num_failures: int) -> float:
        """After so long without an answer, an evaluator is taken to hang.

        Args:
            num_failures: of the same task on other evaluators.

        Returns:
            Infinity where nobody knows what it should take, such as for a measurement of speed.
        """
        if isinstance(task, ClockedTask):
            return math.inf
        if self.knows(task):
            return max(_HUNG_AT_LEAST_S, _HUNG_TIMES * self.expected_s(evaluator, task))
        first_s = max(_UNKNOWN_AT_LEAST_S, _UNKNOWN_START_TIMES * self.longest_start_s)
        return max(first_s, self.slowest_s(task)) * _UNKNOWN_GROWTH**num_failures

    def slowest_s(self, task: Task) -> float:
        """What a slow device takes for a task that reads a whole text, and at most for one that
        writes a short one; 0 for others.
        """
        reads = isinstance(task, StatisticsTask | GenerationTask) or (
            isinstance(task, OrderTask) and task.importance == "activation"
        )
        return self.slowest_text_s if reads else 0.0

    def patience_s(self, task: Task) -> float:
        """How long one evaluator alone may work on a task whose time nobody knows."""
        if isinstance(task, ClockedTask):
            return math.inf
        return max(_PATIENCE_AT_LEAST_S, _PATIENCE_START_TIMES * self.longest_start_s)

    def straggler_factor(self, evaluator: int) -> float:
        """1 for an average evaluator, 2 for one that takes twice as long."""
        return self._straggler_factors.get(evaluator, 1.0)

    def decay(self) -> None:
        """Brings all straggler factors closer to 1: a new step begins."""
        self._straggler_factors = {
            evaluator: 1 + (1 - _DECAY) * (factor - 1)
            for evaluator, factor in self._straggler_factors.items()
        }

    def observe_start(self, seconds: float) -> None:
        """Learns from an evaluator that has become ready."""
        self.longest_start_s = max(self.longest_start_s, seconds)

    def observe(self, evaluator: int, task: Task, result: object, seconds: float) -> None:
        """Learns from one task.

        Args:
            seconds: until the answer came, for results that do not say how long they took.
        """
        if isinstance(result, (ScoreResult, AnswerResult)):
            seconds = result.seconds
        if not isinstance(task, ScoreTask):
            self._observe_size(evaluator, task, seconds)
        elif isinstance(result, ScoreResult):
            self._observe_work(evaluator, task, seconds, prefix_layers=result.prefix_layers)

    def _observe_size(self, evaluator: int, task: WholeTask, seconds: float) -> None:
        self._compare(evaluator, seconds, self.task_s(task))
        known_s, size = self._sizes.get(task.kind, (0.0, 0.0))
        self._sizes[task.kind] = (_MEMORY * known_s + seconds, _MEMORY * size + task.size)

    def _observe_work(
        self, evaluator: int, task: ScoreTask, seconds: float, *, prefix_layers: int
    ) -> None:
        layers, heads = work(task, self.num_layers)
        layers += prefix_layers
        if self.measured:
            self._compare(evaluator, seconds, self.work_s(layers, heads))
        products = (
            layers * layers,
            layers * heads,
            heads * heads,
            layers * seconds,
            heads * seconds,
        )
        self._sums = [
            _MEMORY * total + product for total, product in zip(self._sums, products, strict=True)
        ]
        self._fit()

    def _compare(self, evaluator: int, seconds: float, expected_s: float) -> None:
        if expected_s <= 0:
            return
        old = self.straggler_factor(evaluator)
        seen = min(seconds / expected_s, _MAX_FACTOR_GROWTH * old)
        self._straggler_factors[evaluator] = _FACTOR_MEMORY * old + (1 - _FACTOR_MEMORY) * seen

    def _fit(self) -> None:
        ll, lh, hh, ls, hs = self._sums
        determinant = ll * hh - lh * lh
        layer_s = head_s = 0.0
        if determinant > 1e-9 * ll * hh:
            layer_s = (ls * hh - hs * lh) / determinant
            head_s = (hs * ll - ls * lh) / determinant
        if layer_s <= 0 or head_s < 0:  # tasks too alike to tell the two apart
            layer_s = head_s = (ls + hs) / (ll + 2 * lh + hh)
        self._layer_s, self._head_s = layer_s, head_s
        self.measured = True


def work(task: ScoreTask, num_layers: int) -> tuple[float, float]:
    """Layers and heads that a task runs above its prefix: of its own base the head only."""
    layers = sum(num_layers - candidate.layer for candidate in task.candidates if candidate)
    return float(layers), float(len(task.candidates))


def slowest_text_s(spec: EvaluatorSpec, placement: Placement) -> float:
    """Seconds that a slow evaluator takes for the longest of its calibration sets."""
    checkpoint = spec.checkpoint
    accounting = Accounting(checkpoint.config(), trust_remote_code=checkpoint.trust_remote_code)
    num_tokens = max((tokens.size for tokens in spec.token_sets.values()), default=0)
    flops = 2 * accounting.num_dense_parameters * num_tokens
    return flops / (_SLOW_GPU if placement.num_gpus else _SLOW_CPU * spec.num_threads)
