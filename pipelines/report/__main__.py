"""Entry of `python -m pipelines.report`: help and options are there before what does the work."""

from __future__ import annotations

from pipelines.cli.launch import Job, launch, listed_in


def report_job() -> Job:
    """See `pipelines.report.command`, which takes seconds to import."""
    from pipelines.report.command import report

    return report


if __name__ == "__main__":
    launch("report", report_job, prepare=listed_in("runs"))
