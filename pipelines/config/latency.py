"""What `pipelines.latency` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from omegaconf import MISSING, DictConfig

from pipelines.config.groups import ClusterConfig, ModelConfig, at_least, checked


@dataclass
class LatencyConfig:
    """Everything that `pipelines.latency` takes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    batch_size: int = MISSING
    prompt_tokens: int = MISSING
    new_tokens: int = MISSING
    rounds: int = MISSING
    width_step: int | None = MISSING
    widths: list[int] = MISSING
    output_dir: str | None = MISSING

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """See `checked`."""
        return checked(cls, config, cls.problems)

    def problems(self) -> list[str]:
        found = self.model.problems() + self.cluster.problems()
        found += at_least(
            self, "", batch_size=1, prompt_tokens=1, new_tokens=1, rounds=1, width_step=1
        )
        if negative := [width for width in self.widths if width < 0]:
            found.append(f"widths: {', '.join(map(str, negative))}; at least 0")
        if self.widths and self.width_step is not None:
            found.append("widths, width_step: both are given; give one of them")
        if (self.cluster.num_evaluators or 1) > 1:
            found.append(
                f"cluster.num_evaluators: {self.cluster.num_evaluators}, which has no effect: one "
                "evaluator measures, so that nothing disturbs it"
            )
        if (self.cluster.num_gpus_per_evaluator or 0) > 1:
            found.append(
                f"cluster.num_gpus_per_evaluator: {self.cluster.num_gpus_per_evaluator}; blocks "
                "are timed on one GPU, or with 0 on CPUs"
            )
        return found
