"""`multipruner report RUN...`: searches go in, one page that compares them comes out.

It reads their folders, and no model.
"""

from __future__ import annotations

import logging
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from pipelines.cli.console import log_to, print_line
from pipelines.config.report import ReportConfig
from pipelines.report.data import ReportRun
from pipelines.report.folders import read_runs
from pipelines.report.page import render
from pipelines.report.sections import sections
from pipelines.runs.files import REPORT
from pipelines.runs.folder import RunFolder
from pipelines.tracking.saved_page import add_to_page, unreachable

log = logging.getLogger(__name__)


def report(raw: DictConfig, _overrides: Sequence[str]) -> Path:
    """Writes the page; returns where it is.

    Raises:
        InputError: with every problem of every folder, before anything is written.
    """
    log_to(None)
    config = ReportConfig.of(raw)
    runs = read_runs(config.runs)
    page = render(*_titles(runs), sections(runs))
    with RunFolder(config.output_dir) as folder:
        path = folder.write(REPORT, page)
    print_line(f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}: {path}")
    if config.open and not webbrowser.open(path.resolve().as_uri()):
        print_line("open: no browser was found on this machine")
    if config.log_to_mlflow:
        log_page(runs, path)
    return path


def log_page(runs: Sequence[ReportRun], path: Path) -> None:
    """Puts the page among the artifacts of each run.

    A server that does not answer is asked once; what one refuses costs the other runs nothing.
    """
    away: set[str] = set()
    for run in runs:
        problem = unreachable(run.tracking_uri, run.mlflow_run_id)
        if problem is not None:
            log.warning("run %s: the page is not in MLflow: %s", run.key, problem)
        elif run.tracking_uri not in away and not add_to_page(
            run.tracking_uri, run.mlflow_run_id, artifacts=[path]
        ):
            away.add(run.tracking_uri)


def _titles(runs: Sequence[ReportRun]) -> tuple[str, str]:
    models = list(dict.fromkeys(run.model_name for run in runs))
    count = f"{len(runs)} searches" if len(runs) > 1 else "One search"
    whose = ", ".join(models[:4]) + (f" and {len(models) - 4} more" if len(models) > 4 else "")
    return (
        f"{count} compared" if len(runs) > 1 else f"{count}: {runs[0].name}",
        f"MultiPruner, {whose}. Ratio is removed / all parameters of the dense model.",
    )
