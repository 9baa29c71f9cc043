"""`multipruner sweep`: many searches as one experiment: one pool of evaluators, one store,
one table.

What two points have in common is scored once. A point that fails does not stop the others; the same
command goes on with what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pipelines.cli.console import log_to
from pipelines.config.grid import plain_grid, points_of
from pipelines.config.overrides import check_axes, option_of
from pipelines.config.sweep import SweepConfig
from pipelines.evaluators import joined
from pipelines.runs.files import RUN, SWEEP_LOG
from pipelines.runs.folder import RunFolder
from pipelines.sweep.point_jobs import check_folder, make_jobs
from pipelines.sweep.resume import OWN_OPTIONS, resumed_sweep, saved_grid, saved_overrides
from pipelines.sweep.sweep_run import SweepRun
from pruning.canonical_json import dump_json


def sweep(raw: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Runs every point of the grid that is not there yet; returns what sweep.json says, and its
    folder as `output_dir`.

    Raises:
        InputError: invalid input, in any point, found before the first one
            starts.
        Failed: some points did; the others are done.
    """
    log_to(None)
    given = [override for override in overrides if option_of(override) not in OWN_OPTIONS]
    config, given, grid = (
        resumed_sweep(raw, given)
        if raw.resume
        else (SweepConfig.of_grid(raw), given, plain_grid(raw.grid))
    )
    check_axes(grid, raw)
    there = raw.output_dir and (Path(raw.output_dir).expanduser() / RUN).exists()
    with joined(config.cluster):
        jobs = make_jobs(points_of(grid), given, is_new=not there)
        with RunFolder(raw.output_dir) as folder:
            try:
                record = folder.claim({"kind": "sweep"})
                for each in jobs:
                    each.job.config.output_dir = str(folder.path / each.point.name)
                    check_folder(each)
                folder.write(
                    RUN,
                    dump_json(
                        record
                        | {
                            "grid": saved_grid(grid),
                            "overrides": saved_overrides(given, jobs[0].job),
                        }
                    ),
                )
                log_to(folder.path / SWEEP_LOG)
                report = SweepRun(config, jobs, folder, grid).go()
                return report | {"output_dir": str(folder.path)}
            finally:
                log_to(None)
