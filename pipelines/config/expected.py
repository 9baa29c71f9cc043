"""Reference metrics: what someone published, or what an earlier run came to.

Only `pipelines.reproduce` reads them: they decide nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class ReferenceMetrics:
    """Of one model. Null: not known.

    Args:
        num_parameters: norms of removed blocks included.
        perplexity: per token, by the name of the text.
        accuracy: by task, 0..1: acc_norm, acc for tasks that have none.
        accuracy_average: over the papers' five tasks, 0..1.
    """

    num_parameters: int | None = None
    perplexity: dict[str, float] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    accuracy_average: float | None = None


@dataclass
class Tolerance:
    """How far a measured figure may be off.

    The defaults are explained in docs/guide/reproduce.md.

    Args:
        num_parameters: of counts.
        perplexity: relative, 0..1.
        accuracy_stderrs: standard errors of the measured accuracy.
        perplexity_rounding, accuracy_rounding, ratio_rounding: half of the last digit that is
            given, on top.
    """

    num_parameters: int = 0
    perplexity: float = 0.01
    accuracy_stderrs: float = 2.0
    perplexity_rounding: float = 0.005
    accuracy_rounding: float = 0.00005
    ratio_rounding: float = 0.00005


@dataclass
class ExpectedConfig:
    """Key `expected` of an experiment.

    Args:
        source: where the figures come from.
        config: what `config.json` of the dense model says of its sizes, so that counting needs no
            model.
        settings: what was published where `search` had to differ, shown beside the verdict.
        keep_qkv_bias: the published count keeps the q, k, v biases of what was removed.
        ratio: removed / all parameters, where no count is known.
        shape: canonical text of the pruned shape.
        removed_attention, removed_mlp: layers whose block went, in order, where the steps between
            them are not known.
        steps: what every step removed, in order, as `Removal` says it.
        no_plan: why it cannot be checked that the search plans for what the shape implies.
    """

    source: str = MISSING
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    keep_qkv_bias: bool = False
    dense: ReferenceMetrics = field(default_factory=ReferenceMetrics)
    pruned: ReferenceMetrics = field(default_factory=ReferenceMetrics)
    ratio: float | None = None
    shape: str | None = None
    removed_attention: list[int] | None = None
    removed_mlp: list[int] | None = None
    steps: list[str] | None = None
    no_plan: str | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)

    def problems(self) -> list[str]:
        if not self.source.strip():
            return ["expected.source: empty; say where the figures come from"]
        tolerance = self.tolerance
        low = [name for name, value in vars(tolerance).items() if not 0 <= value < math.inf]
        return [
            f"expected.tolerance.{name}: {getattr(tolerance, name)}; at least 0" for name in low
        ]
