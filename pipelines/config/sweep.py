"""Typed configuration of `pipelines.sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING, DictConfig

from pipelines.config.prune import PruneConfig
from pipelines.config.recovery import IN_SWEEPS


@dataclass
class SweepConfig(PruneConfig):
    """Everything that `pipelines.sweep` takes: options of every point, and those of the sweep."""

    grid: dict[str, Any] = field(default_factory=dict)
    max_perplexity_ratio: float = MISSING

    def problems_outside_axes(self) -> list[str]:
        found = super().problems_outside_axes()
        if not self.max_perplexity_ratio >= 1:
            found.append(
                f"max_perplexity_ratio: {self.max_perplexity_ratio:g}; it is pruned / dense "
                "perplexity, at least 1"
            )
        if self.measure_latency:
            found.append(
                "measure_latency: true, which a sweep does not do, since its evaluators are busy "
                "until the end; measure a point with multipruner evaluate evaluation.cost=true"
            )
        return found

    def problems_of_recovery(self, given: Sequence[str]) -> list[str]:
        return self.recovery.refused(given, IN_SWEEPS)

    @classmethod
    def point(
        cls, config: DictConfig, given: Sequence[str] = (), common: Sequence[str] = ()
    ) -> PruneConfig:
        """The configuration of one point, checked; its folder is not known yet.

        Args:
            given, common: see `of_new`.

        Raises:
            InputError: with every problem at once.
        """
        typed = cls.of_new(config, given, common)
        return PruneConfig(
            **{each.name: getattr(typed, each.name) for each in fields(PruneConfig)}
            | {"output_dir": None, "resume": False}
        )
