"""`multipruner latency`: a model goes in, a table of what its blocks take comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from pipelines.cli.commands import command_line
from pipelines.cli.console import log_to, show_result
from pipelines.config.latency import LatencyConfig
from pipelines.config.overrides import as_override
from pipelines.evaluators import joined
from pipelines.latency.in_engine import warn_of_errors
from pipelines.latency.measurement import LatencyJob
from pipelines.latency.picture import latency_figure
from pipelines.latency.table import as_table
from pipelines.runs.files import LATENCY, LATENCY_LOG, LATENCY_PICTURE
from pipelines.runs.folder import RunFolder
from pruning.costs.latency import warn_of_noise


def latency(raw: DictConfig, _: Sequence[str]) -> dict[str, Any]:
    """Measures one table; returns what latency.json says.

    Raises:
        InputError: invalid input, found before anything expensive starts; or another engine than
            transformers failed.
    """
    log_to(None)
    config = LatencyConfig.of(raw)
    with joined(config.cluster):
        job = LatencyJob.of(config)
        with RunFolder(config.output_dir) as folder:
            try:
                folder.claim(job.identity())
                log_to(folder.path / LATENCY_LOG)
                table = job.measure(folder)
                folder.write_with(LATENCY, table.save)
                folder.write_with(LATENCY_PICTURE, latency_figure(table).savefig)
                warn_of_noise(table)
                warn_of_errors(table)
                show_result(
                    as_table(table, job.accounting.dense),
                    f"everything is in {folder.path}",
                    "to use it: "
                    + command_line(
                        "solve",
                        "run=RUN",
                        "search.target.latency=0.25",
                        as_override("latency", folder.path / LATENCY),
                    ),
                )
                return table.to_json()
            finally:
                log_to(None)
