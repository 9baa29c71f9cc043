"""What `pipelines.prune` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from omegaconf import MISSING, DictConfig

from pipelines.config.calibration import CalibrationConfig
from pipelines.config.expected import ExpectedConfig
from pipelines.config.groups import (
    ClusterConfig,
    EvaluationConfig,
    ModelConfig,
    SamplesConfig,
    StoreConfig,
    TrackingConfig,
    checked,
    not_allowed,
    one_of,
)
from pipelines.config.recovery import RecoveryConfig
from pipelines.config.search import SearchConfig
from pipelines.config.target import MemoryConfig, table_problems
from pruning.costs.memory import MemoryLoad
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
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    export: str | None = one_of(FORMAT_NAMES)
    latency: str | None = MISSING
    measure_latency: bool | None = MISSING
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    output_dir: str | None = MISSING
    resume: bool = MISSING
    accept_other_arithmetic: bool = MISSING
    expected: ExpectedConfig | None = None

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """See `checked`."""
        return checked(cls, config, cls.problems)

    @classmethod
    def of_new(cls, config: DictConfig, given: Sequence[str], common: Sequence[str] = ()) -> Self:
        """The same for a run that is not there yet.

        Args:
            given: names of the options that the command gives.
            common: names of those that it gives to all points of a grid; `given` are then those of
                one point.
        """
        return checked(
            cls,
            config,
            lambda typed: (
                typed.problems()
                + typed.search.problems_of_new(given, common)
                + typed.problems_of_memory([*given, *common])
                + typed.problems_of_recovery([*given, *common])
            ),
        )

    @classmethod
    def of_grid(cls, config: DictConfig) -> Self:
        """The same for what all points of a grid have in common. What a point may set, such as
        `calibration.path`, is checked in each point.
        """
        return checked(cls, config, cls.problems_outside_axes)

    @property
    def path_options(self) -> tuple[str, ...]:
        """Names of its options that are files or folders to read."""
        return ("model.path", *self.calibration.path_options, "latency")

    @property
    def load(self) -> MemoryLoad | None:
        """What memory is counted at, where it is asked for."""
        if self.search.target.memory is None:
            return None
        return self.memory.load(self.calibration.sequence_length)

    def problems_of_recovery(self, given: Sequence[str]) -> list[str]:
        """Options of a training that is not asked for."""
        if self.recovery.wanted:
            return []
        return self.recovery.refused(
            given, "no effect without recovery=lora or recovery=full; give one, or leave out"
        )

    def problems_of_memory(self, given: Sequence[str]) -> list[str]:
        """Options of a load that nothing is counted at."""
        names = [name for name in given if name.startswith("memory.")]
        if not names or self.load is not None:
            return []
        return [f"{', '.join(names)}: no effect without search.target.memory; leave out"]

    def problems(self) -> list[str]:
        axes = (self.model, self.calibration, self.search)
        found = [problem for group in axes for problem in group.problems()]
        found += table_problems(self.search.asked, self.latency)
        if self.measure_latency is not None and self.latency is None:
            found.append(
                f"measure_latency: {str(self.measure_latency).lower()}, which has no effect "
                "without latency=FILE; leave it out"
            )
        return found + self.problems_outside_axes()

    def problems_outside_axes(self) -> list[str]:
        """Those of options that no point of a grid sets."""
        places = (self.cluster, self.tracking, self.store)
        groups = (*places, self.evaluation, self.recovery, self.memory, self.samples)
        found = [problem for group in groups for problem in group.problems()]
        found += not_allowed(self)
        found += self.expected.problems() if self.expected is not None else []
        if self.resume and self.output_dir is None:
            found.append("output_dir: missing; resume=true goes on with the run in that folder")
        return found
