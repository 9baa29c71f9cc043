"""What `pipelines.evaluate` takes.

The group that it shares with `pipelines.prune` is in `pipelines/config/groups.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from omegaconf import MISSING, DictConfig

from pipelines.config.export import importance_problems
from pipelines.config.groups import (
    ClusterConfig,
    EvaluationConfig,
    ModelConfig,
    StoreConfig,
    TrackingConfig,
    checked,
    no_system_metrics,
)
from pipelines.config.prune import PruneConfig


@dataclass
class EvaluateConfig:
    """Everything that `pipelines.evaluate` takes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    run: str | None = MISSING
    checkpoint: str | None = MISSING
    shape: str | None = MISSING
    importance: str | None = MISSING
    output_dir: str | None = MISSING

    @classmethod
    def of(cls, config: DictConfig, given: Sequence[str]) -> Self:
        """See `checked`; `given` are the names of the options that the command gives."""
        return checked(cls, config, lambda typed: typed.problems(given))

    @classmethod
    def like(cls, config: PruneConfig, *, model: ModelConfig, run: str | None) -> Self:
        """An evaluation as a search asks for it, on the same evaluators, with the same store and
        tracking.
        """
        return cls(
            model=model,
            evaluation=config.evaluation,
            cluster=config.cluster,
            tracking=config.tracking,
            store=config.store,
            run=run,
            checkpoint=None,
            shape=None,
            importance=None,
            output_dir=None,
        )

    def problems(self, given: Sequence[str]) -> list[str]:
        groups = (self.evaluation, self.cluster, self.tracking, self.store)
        found = [problem for group in groups for problem in group.problems()]
        if "tracking.register" in given:
            found.append(
                "tracking.register: has no effect on evaluate; give it to prune, sweep or recover"
            )
        found += no_system_metrics(given)
        if self.model.path.strip():
            found += self.model.problems()
        sources = {
            "run": self.run,
            "checkpoint": self.checkpoint,
            "model.path": self.model.path.strip() or None,
        }
        names = [name for name, value in sources.items() if value is not None]
        # The folder of an export does not say where its dense model is: model.path may.
        if self.shape is not None and names != ["model.path"]:
            others = ", ".join(each for each in names if each != "model.path") or "no model.path"
            found.append(
                f"shape: given with {others}; a shape file goes with model.path=MODEL, of which it "
                "is a shape, and with nothing else"
            )
        elif not names:
            found.append(
                "run, checkpoint, model.path: none is given; give run=OUTPUT_DIR of a search, "
                "checkpoint=DIR of an export, or model.path=MODEL, with shape=FILE or alone"
            )
        elif "run" in names and len(names) > 1:
            found.append(f"{', '.join(names)}: give one of them; run= knows its model")
        elif self.run is not None:
            found += [
                f"{name}: has no effect with run=, which knows its model"
                for name in given
                if name in ("model.revision", "model.trust_remote_code")
            ]
        if self.importance is not None and self.shape is None:
            found.append(f"importance: {self.importance}, which has no effect without shape=")
        else:
            found += importance_problems(self.importance)
        if self.checkpoint is not None and self.evaluation.cost_engines:
            found.append(
                "evaluation.cost_engines: has no effect with checkpoint=, which is of one format; "
                "give run=OUTPUT_DIR of its search, or model.path=MODEL with shape=FILE"
            )
        if not self.evaluation.wanted:
            found.append(
                "evaluation: nothing to measure; give evaluation.tasks, evaluation.texts, "
                "evaluation.cost=true or evaluation.cost_engines"
            )
        return found
