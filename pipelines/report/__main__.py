"""Entry of `python -m pipelines.report`: help and options are there before what does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.cli.signals import exit_on_signals

if TYPE_CHECKING:
    from pipelines.cli.launch import Job


def report_job() -> Job:
    """See `pipelines.report.command`, which takes seconds to import."""
    from pipelines.report.command import report

    return report


if __name__ == "__main__":
    with exit_on_signals():
        from pipelines.cli.launch import launch, listed_in

        launch("report", report_job, prepare=listed_in("runs"))
