"""Entry of `python -m pipelines.prune`: help and options are there before what does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.cli.signals import exit_on_signals

if TYPE_CHECKING:
    from pipelines.cli.launch import Job


def prune_job() -> Job:
    """See `pipelines.prune.command`, which takes seconds to import."""
    from pipelines.prune.command import prune

    return prune


if __name__ == "__main__":
    with exit_on_signals():
        from pipelines.cli.launch import launch

        launch("prune", prune_job)
