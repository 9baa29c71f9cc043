"""What `pipelines.prune` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from omegaconf import MISSING, DictConfig

from pipelines.config.expected import ExpectedConfig
from pipelines.config.groups import (
    CalibrationConfig,
    ClusterConfig,
    EvaluationConfig,
    ModelConfig,
    SearchConfig,
    StoreConfig,
    TrackingConfig,
    checked,
    not_allowed,
    one_of,
)
from pruning.export.formats import FORMAT_NAMES


@dataclass
class PruneConfig:
    """Everything that `pipelines.prune` takes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    export: str | None = one_of(FORMAT_NAMES)
    output_dir: str | None = MISSING
    resume: bool = MISSING
    expected: ExpectedConfig | None = None

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """See `checked`."""
        return checked(cls, config, cls.problems)

    def problems(self) -> list[str]:
        groups = (
            self.model,
            self.calibration,
            self.search,
            self.cluster,
            self.tracking,
            self.store,
            self.evaluation,
        )
        found = [problem for group in groups for problem in group.problems()]
        found += not_allowed(self)
        found += self.expected.problems() if self.expected is not None else []
        if self.resume and self.output_dir is None:
            found.append("output_dir: missing; resume=true goes on with the run in that folder")
        return found

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result.

        Two runs that agree on them, and on the bytes of model and calibration, have the same
        trajectory.
        """
        calibration, search = self.calibration, self.search
        identity: dict[str, Any] = {
            "calibration.batch_size": calibration.batch_size,
            "search.target_ratio": search.target_ratio,
            "search.distribution": [float(share) for share in search.distribution],
            "search.importance": search.importance,
        }
        # Left out where they change nothing, as in folders from before there was a choice.
        identity |= {"search.layout": search.layout} if search.layout != "any" else {}
        identity |= {"search.strategy": search.strategy} if search.strategy != "greedy" else {}
        return identity | (
            {"search.seed": search.drawn_with} if search.strategy == "random" else {}
        )
