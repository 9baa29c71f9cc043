"""Entry of `python -m pipelines.latency`: help and options are there before what does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.cli.signals import exit_on_signals

if TYPE_CHECKING:
    from pipelines.cli.launch import Job


def latency_job() -> Job:
    """See `pipelines.latency.command`, which takes seconds to import."""
    from pipelines.latency.command import latency

    return latency


if __name__ == "__main__":
    with exit_on_signals():
        from pipelines.cli.launch import launch

        launch("latency", latency_job)
