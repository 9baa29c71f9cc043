"""Entry of `python -m pipelines.report`: help and options are there before what does the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.cli.signals import exit_on_signals

if TYPE_CHECKING:
    from pipelines.cli.launch import Job


def report_job() -> Job:
    """See `pipelines.report.command`, which takes seconds to import."""
    from pipelines.report.command import report

    return report


def prepared(words: Sequence[str]) -> list[str]:
    """Words that set nothing are runs, and `--open` is short for `open=true`."""
    from pipelines.cli.launch import listed_in

    return listed_in("runs")(["open=true" if word == "--open" else word for word in words])


if __name__ == "__main__":
    with exit_on_signals():
        from pipelines.cli.launch import launch

        launch("report", report_job, prepare=prepared)
