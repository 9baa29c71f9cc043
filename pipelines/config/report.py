"""Typed configuration of `pipelines.report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from omegaconf import MISSING, DictConfig

from pipelines.config.groups import checked


@dataclass
class ReportConfig:
    """Everything that `pipelines.report` takes."""

    runs: list[str] = MISSING
    open: bool = MISSING
    log_to_mlflow: bool = MISSING
    output_dir: str | None = MISSING

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """See `checked`."""
        return checked(cls, config, cls.problems)

    def problems(self) -> list[str]:
        return (
            []
            if self.runs
            else [
                (
                    "runs: missing; give the output_dir of one search or more, as "
                    "multipruner report RUN RUN output_dir=DIR"
                )
            ]
        )
