"""Typed configuration of `pipelines.report`."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING, DictConfig, OmegaConf

from pruning.errors import InputError


@dataclass
class ReportConfig:
    """Everything that `pipelines.report` takes."""

    runs: list[str] = MISSING
    log_to_mlflow: bool = MISSING
    output_dir: str | None = MISSING

    @classmethod
    def of(cls, config: DictConfig) -> ReportConfig:
        """The checked configuration.

        Raises:
            InputError: no run is given.
        """
        typed = OmegaConf.to_object(config)
        assert isinstance(typed, cls)
        if not typed.runs:
            raise InputError("runs: missing; give the output_dir of one search or more, as python -m pipelines.report RUN RUN output_dir=DIR")
        return typed
