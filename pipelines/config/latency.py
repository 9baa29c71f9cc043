"""What `pipelines.latency` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from omegaconf import MISSING, DictConfig

from pipelines.config.groups import (
    ClusterConfig,
    ModelConfig,
    at_least,
    checked,
    not_allowed,
    one_of,
)
from pruning.costs.latency import ENGINES, TRANSFORMERS


@dataclass
class LatencyConfig:
    """Everything that `pipelines.latency` takes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    engine: str = one_of((TRANSFORMERS, *ENGINES))
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

    @property
    def in_engine(self) -> bool:
        """Another engine than transformers, which runs here beside this process."""
        return self.engine in ENGINES

    def problems(self) -> list[str]:
        found = self.model.problems() + self.cluster.problems() + not_allowed(self)
        found += self._problems_of_engine() if self.in_engine else []
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

    def _problems_of_engine(self) -> list[str]:
        found = []
        if self.cluster.kind == "ray":
            found.append(
                f"cluster: ray, and engine={self.engine} is measured on this machine; give "
                "cluster=local there where the model is served"
            )
            return found
        found += [
            f"cluster.{name}: {given}, which has no effect: engine={self.engine} takes the device "
            "that it takes by itself"
            for name in ("num_gpus", "num_gpus_per_evaluator")
            if (given := getattr(self.cluster, name)) is not None
        ]
        if self.model.trust_remote_code:
            found.append(
                f"model.trust_remote_code: true, and engine={self.engine} gets no code of models; "
                "leave it out"
            )
        return found
