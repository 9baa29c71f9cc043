"""What `pipelines.evaluate` takes. The group that it shares with `pipelines.prune` is in `pipelines/config/groups.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from omegaconf import MISSING, DictConfig, OmegaConf

from pipelines.config.groups import URLS, ClusterConfig, EvaluationConfig, ModelConfig, PruneConfig, StoreConfig, TrackingConfig, checked
from pipelines.config.redaction import MASK, masked_url
from pruning.errors import InputError

_SAVED = ("tracking", "store")
"""Groups that an evaluation of a search takes from it, so that its numbers are on the search's page, and its scores with the search's."""


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
    output_dir: str | None = MISSING

    @classmethod
    def of(cls, config: DictConfig, given: Sequence[str]) -> Self:
        """See `checked`; `given` are the names of the options that the command gives."""
        return checked(cls, config, lambda typed: typed.problems(given))

    @classmethod
    def like(cls, config: PruneConfig, *, model: ModelConfig, run: str | None) -> Self:
        """An evaluation as a search asks for it, on the same evaluators, with the same store and tracking."""
        return cls(
            model=model,
            evaluation=config.evaluation,
            cluster=config.cluster,
            tracking=config.tracking,
            store=config.store,
            run=run,
            checkpoint=None,
            output_dir=None,
        )

    def problems(self, given: Sequence[str]) -> list[str]:
        groups = (self.evaluation, self.cluster, self.tracking, self.store)
        found = [problem for group in groups for problem in group.problems()]
        if self.model.path.strip():
            found += self.model.problems()
        sources = {"run": self.run, "checkpoint": self.checkpoint, "model.path": self.model.path.strip() or None}
        names = [name for name, value in sources.items() if value is not None]
        # The folder of an export does not say where its dense model is: model.path may.
        if not names:
            found.append("run, checkpoint, model.path: none is given; give run=OUTPUT_DIR of a search, checkpoint=DIR of an export, or model.path=MODEL")
        elif "run" in names and len(names) > 1:
            found.append(f"{', '.join(names)}: give one of them; run= knows its model")
        elif self.run is not None:
            found += [f"{name}: has no effect with run=, which knows its model" for name in given if name in ("model.revision", "model.trust_remote_code")]
        if not self.evaluation.wanted:
            found.append("evaluation: nothing to measure; give evaluation.tasks, evaluation.texts or evaluation.cost=true")
        return found


def with_settings_of_run(config: DictConfig, given: Sequence[str]) -> DictConfig:
    """With `run=`: tracking and store of that search, unless the command gives others.

    Raises:
        InputError: a URL had a password, which is not saved, and is not given again.
    """
    path = Path(config.run or "").expanduser() / "config.yaml"
    if config.run is None or not path.is_file():
        return config
    merged, saved = config.copy(), OmegaConf.load(path)
    for group in _SAVED:
        if not any(name.partition(".")[0] == group for name in given) and OmegaConf.select(saved, group) is not None:
            OmegaConf.update(merged, group, OmegaConf.merge(merged[group], saved[group]))  # type: ignore[index]
    for name in URLS:
        url, own = OmegaConf.select(merged, name), OmegaConf.select(config, name)
        if MASK in url and masked_url(own) != url:
            raise InputError(f"{name}: the search in {config.run} used {url}, and passwords are not saved; give it again, as on its own command")
        OmegaConf.update(merged, name, own if MASK in url else url)
    return merged
