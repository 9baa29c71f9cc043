"""`multipruner report RUN...`: searches go in, one page that compares them comes out.

It reads their folders, and no model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from sqlalchemy.engine import make_url

from pipelines.cli.console import log_to, print_line
from pipelines.config.redaction import MASK
from pipelines.config.report import ReportConfig
from pipelines.report.data import ReportRun
from pipelines.report.folders import read_runs
from pipelines.report.page import render
from pipelines.report.sections import sections
from pipelines.runs.files import REPORT
from pipelines.runs.folder import RunFolder
from pipelines.tracking.tracker import Tracker, local_folder

log = logging.getLogger(__name__)

_MLFLOW_TIMEOUT_S = 20.0


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
    if config.log_to_mlflow:
        log_page(runs, path)
    return path


def log_page(runs: Sequence[ReportRun], path: Path) -> None:
    """Puts the page among the artifacts of each run.

    A server that does not answer is asked once; what one refuses costs the other runs nothing.
    """
    away: set[str] = set()
    for run in runs:
        problem = _unreachable(run)
        if problem is not None:
            log.warning("run %s: the page is not in MLflow: %s", run.key, problem)
        elif run.tracking_uri not in away:
            tracker = Tracker(
                run.tracking_uri,
                "",
                "",
                0.0,
                run.mlflow_run_id,
                lambda _: None,
                keeps_status=True,
            )
            tracker.start({}, {}, {})
            tracker.finish(succeeded=True, artifacts=[path], timeout_s=_MLFLOW_TIMEOUT_S)
            if tracker.is_behind:
                away.add(run.tracking_uri)


def _unreachable(run: ReportRun) -> str | None:
    """Why there is nothing to log to, as far as that is known without asking."""
    if run.mlflow_run_id is None:
        return "the search never reached its server"
    if MASK in run.tracking_uri:
        return "the password of its server is not saved"
    if (
        local_folder(run.tracking_uri) is not None
        and not Path(str(make_url(run.tracking_uri).database)).is_file()
    ):
        return "its database is not there any more"
    return None


def _titles(runs: Sequence[ReportRun]) -> tuple[str, str]:
    models = list(dict.fromkeys(run.model_name for run in runs))
    count = f"{len(runs)} searches" if len(runs) > 1 else "One search"
    whose = ", ".join(models[:4]) + (f" and {len(models) - 4} more" if len(models) > 4 else "")
    return (
        f"{count} compared" if len(runs) > 1 else f"{count}: {runs[0].name}",
        f"MultiPruner, {whose}. Ratio is removed / all parameters of the dense model.",
    )
