"""Entry of `python -m pipelines.solve`: help and options are there before what does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.cli.signals import exit_on_signals

if TYPE_CHECKING:
    from pipelines.cli.launch import Job


def solve_job() -> Job:
    """See `pipelines.solve.command`, which takes seconds to import."""
    from pipelines.solve.command import solve

    return solve


if __name__ == "__main__":
    with exit_on_signals():
        from pipelines.cli.launch import launch
        from pipelines.config.grid import as_grid

        launch("solve", solve_job, prepare=as_grid)
