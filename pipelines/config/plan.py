"""What `pipelines.plan` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from pipelines.config.prune import PruneConfig
from pipelines.config.recovery import IN_SWEEPS


@dataclass
class PlanConfig(PruneConfig):
    """Everything that `pipelines.plan` takes: the options of a search, or with a grid those of a
    sweep.
    """

    grid: dict[str, Any] = field(default_factory=dict)
    tflops_per_evaluator: float | None = MISSING
    rate_of: str | None = MISSING
    measure_rate: bool = MISSING

    def problems_of_memory(self, given: Sequence[str]) -> list[str]:
        """None: what a model takes at a load is in every plan."""
        return []

    def problems_outside_axes(self) -> list[str]:
        found = super().problems_outside_axes()
        if self.tflops_per_evaluator is not None and self.tflops_per_evaluator <= 0:
            found.append(f"tflops_per_evaluator: {self.tflops_per_evaluator:g}; it is above 0")
        if self.tflops_per_evaluator is not None and self.rate_of is not None:
            found.append("tflops_per_evaluator, rate_of: both are given; give one of them")
        if self.grid:
            found += self.recovery.refused((), IN_SWEEPS)
        return found
