"""Entry of `python -m pipelines.evaluate`: help and options are there before what does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.cli.signals import exit_on_signals

if TYPE_CHECKING:
    from pipelines.cli.launch import Job


def evaluate_job() -> Job:
    """See `pipelines.evaluate.command`, which takes seconds to import."""
    from pipelines.evaluate.command import evaluate

    return evaluate


if __name__ == "__main__":
    with exit_on_signals():
        from pipelines.cli.launch import launch

        launch("evaluate", evaluate_job)
