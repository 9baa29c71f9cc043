"""What `pipelines.recover` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from omegaconf import MISSING, DictConfig

from pipelines.config.calibration import CalibrationConfig
from pipelines.config.export import source_problems
from pipelines.config.groups import (
    ClusterConfig,
    ModelConfig,
    TrackingConfig,
    at_least,
    checked,
    no_system_metrics,
)
from pipelines.config.recovery import RecoveryConfig
from pruning.calibration.spec import CalibrationSpec, MixtureSpec

if TYPE_CHECKING:
    from pipelines.config.prune import PruneConfig

RECOVERY_OPTIONS = {
    "calibration.num_block_samples": "recovery.num_sequences",
    "calibration.num_width_samples": "recovery.num_sequences",
    "calibration.num_heldout_samples": "recovery.num_heldout_sequences",
    "calibration.sequence_length": "recovery.sequence_length",
    "calibration.batch_size": "recovery.batch_size",
    "calibration.seed": "recovery.seed",
}
"""Of a search, and what a recovery takes instead."""

_OF_EVALUATORS = (
    "cluster.start_timeout_s",
    "cluster.task_timeout_s",
)


@dataclass
class RecoverConfig:
    """Everything that `pipelines.recover` takes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    run: str | None = MISSING
    shape: str | None = MISSING
    importance: str | None = MISSING
    output_dir: str | None = MISSING
    plan: bool = MISSING

    @classmethod
    def of(cls, config: DictConfig, given: Sequence[str]) -> Self:
        """See `checked`; `given` are the names of the options that the command gives."""
        return checked(cls, config, lambda typed: typed.problems(given))

    @classmethod
    def after(cls, config: PruneConfig, run: str) -> Self:
        """A recovery as a search asks for it, on the same text, machine and tracking, in as many
        processes as the search has evaluators, if an update has as many parts.
        """
        cluster, num_parts = config.cluster, config.recovery.settings().num_parts
        if cluster.num_evaluators is not None:
            cluster = replace(cluster, num_evaluators=min(cluster.num_evaluators, num_parts))
        return cls(
            model=ModelConfig("", None, "auto", trust_remote_code=False),
            recovery=config.recovery,
            calibration=config.calibration,
            cluster=cluster,
            tracking=config.tracking,
            run=run,
            shape=None,
            importance=None,
            output_dir=None,
            plan=False,
        )

    def problems(self, given: Sequence[str]) -> list[str]:
        found = source_problems(self, given) + no_system_metrics(given)
        of_shape = self.run is None and self.shape is not None
        if of_shape and not {"calibration", "experiment"} & set(given):
            found.append(
                "calibration: missing; with shape= say what text to train on, such as "
                "calibration=mix"
            )
        for group in (self.recovery, self.calibration, self.cluster, self.tracking):
            found += group.problems()
        if not self.recovery.wanted:
            found += at_least(self.recovery, "recovery.", steps=1)
        found += [
            f"{name}: has no effect on recover; give {RECOVERY_OPTIONS[name]}"
            for name in given
            if name in RECOVERY_OPTIONS
        ]
        found += [
            f"{name}: has no effect on recover, which waits for its processes; leave it out"
            for name in given
            if name in _OF_EVALUATORS
        ]
        if "cluster.stall_timeout_s" in given and self.cluster.kind == "inline":
            found.append(
                "cluster.stall_timeout_s: has no effect with cluster=inline, where nothing is "
                "waited for; leave it out"
            )
        if not found:  # settings must be ones
            found += self._problems_of_processes()
        if (self.cluster.num_gpus_per_evaluator or 0) > 1:
            found.append(
                f"cluster.num_gpus_per_evaluator: {self.cluster.num_gpus_per_evaluator}; recover "
                "trains on one GPU, or with 0 on CPUs"
            )
        return found

    def _problems_of_processes(self) -> list[str]:
        """More than have something to do."""
        asked, settings = self.cluster.num_evaluators, self.recovery.settings()
        num_parts = settings.num_parts
        if asked is None or asked <= num_parts:
            return []
        smaller = settings.batch_size // asked
        advice = f", or recovery.micro_batch_size={smaller}" if smaller else ""
        return [
            f"cluster.num_evaluators: {asked}, above the number of parts of an update, each of "
            f"which one process takes: {num_parts} (recovery.batch_size={settings.batch_size}, "
            f"recovery.micro_batch_size={settings.micro_batch_size}); give at most "
            f"{num_parts}{advice}"
        ]

    @property
    def path_options(self) -> tuple[str, ...]:
        """Names of its options that are files or folders to read."""
        return ("model.path", "run", "shape", *self.calibration.path_options)

    def text(self) -> CalibrationSpec | MixtureSpec:
        """Where its sequences come from: `block` is trained on, `width` is empty."""
        recovery, spec = self.recovery, self.calibration.spec()
        sized = replace(
            spec,
            num_block_samples=recovery.sequences,
            num_width_samples=0,
            num_heldout_samples=recovery.num_heldout_sequences,
            sequence_length=recovery.sequence_length,
            seed=recovery.seed,
        )
        return sized if isinstance(sized, MixtureSpec) else replace(sized, rows_are_samples=False)
