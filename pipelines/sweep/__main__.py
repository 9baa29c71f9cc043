"""Entry of `python -m pipelines.sweep`: help and options are there before what does the work."""

from __future__ import annotations

from pipelines.cli.launch import Job, launch
from pipelines.config.grid import as_grid


def sweep_job() -> Job:
    """See `pipelines.sweep.command`, which takes seconds to import."""
    from pipelines.sweep.command import sweep

    return sweep


if __name__ == "__main__":
    launch("sweep", sweep_job, prepare=as_grid)
