"""What `pipelines.export` takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol, Self

from omegaconf import MISSING, DictConfig, OmegaConf

from pipelines.config.groups import ModelConfig, checked, not_allowed, one_of
from pipelines.config.overrides import CONF
from pruning.export.formats import FORMAT_NAMES
from pruning.models.dtypes import DTYPES


def importance_problems(importance: str | None) -> list[str]:
    """What is wrong with the channel order that is asked for with a shape file."""
    if importance in (None, "l1", "none"):
        return []
    return [
        f"importance: {importance!r}; with shape= one of l1, none, or null for the "
        "channel_order.safetensors beside the file (activation needs the calibration text of its "
        "search: give run=)"
    ]


class PrunedSource(Protocol):
    """Options of a command that takes a pruned model."""

    model: ModelConfig
    run: str | None
    shape: str | None
    importance: str | None
    output_dir: str | None


def source_problems(config: PrunedSource, given: Sequence[str]) -> list[str]:
    """What is wrong with where a pruned model comes from: the folder of a run, or a shape file and
    its model.
    """
    found: list[str] = []
    if (config.run is None) == (config.shape is None):
        what = "neither is given" if config.run is None else "both are given"
        found.append(
            f"run, shape: {what}; give run=OUTPUT_DIR of a search, or shape=FILE and "
            "model.path=MODEL"
        )
    if config.run is not None:
        names = [name for name in given if name.partition(".")[0] in ("model", "importance")]
        return found + [
            f"{name}: has no effect with run=, which knows its model and channel order"
            for name in names
        ]
    found += config.model.problems()
    if not config.output_dir:
        found.append("output_dir: missing; with shape= give the folder to write")
    return found + importance_problems(config.importance)


@dataclass
class ExportConfig:
    """Everything that `pipelines.export` takes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    run: str | None = MISSING
    shape: str | None = MISSING
    importance: str | None = MISSING
    format: str = one_of(FORMAT_NAMES)
    dtype: str = one_of(DTYPES)
    max_shard_gb: float = MISSING
    tokenizer_gguf: str | None = MISSING
    log_to_mlflow: bool = MISSING
    output_dir: str | None = MISSING

    @classmethod
    def of(cls, config: DictConfig, given: Sequence[str]) -> Self:
        """See `checked`; `given` are the names of the options that the command gives."""
        return checked(cls, config, lambda typed: typed.problems(given))

    @classmethod
    def of_run(cls, run: str, format_name: str) -> Self:
        """An export of a search's folder into itself, with the defaults of conf/export.yaml."""
        defaults = OmegaConf.load(CONF / "export.yaml")
        assert isinstance(defaults, DictConfig)
        values = {
            field.name: defaults[field.name] for field in fields(cls) if field.name in defaults
        }
        return cls(**values | {"run": run, "format": format_name})

    def problems(self, given: Sequence[str]) -> list[str]:
        found = not_allowed(self)
        found += source_problems(self, given)
        if self.run is None and "model.dtype" in given:
            found.append("model.dtype: has no effect on an export; give dtype")
        if "log_to_mlflow" in given and self.run is None:
            found.append("log_to_mlflow: has no effect without run=, of which MLflow knows")
        if not 0 < self.max_shard_gb < math.inf:
            found.append(f"max_shard_gb: {self.max_shard_gb:g}; it is in gigabytes, above 0")
        if "max_shard_gb" in given and self.format == "gguf":
            found.append(
                f"max_shard_gb: {self.max_shard_gb:g}, which has no effect with format=gguf, "
                "which is one file"
            )
        if self.tokenizer_gguf is not None and self.format != "gguf":
            found.append(
                f"tokenizer_gguf: {self.tokenizer_gguf}, which has no effect with "
                f"format={self.format}; it is for format=gguf"
            )
        return found
