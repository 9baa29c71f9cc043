"""Entry of `python -m pipelines.reproduce`: help and options come before what does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.cli.signals import exit_on_signals

if TYPE_CHECKING:
    from pipelines.cli.launch import Job


def reproduce_job() -> Job:
    """See `pipelines.reproduce.command`, which takes seconds to import."""
    from pipelines.reproduce.command import reproduce

    return reproduce


if __name__ == "__main__":
    with exit_on_signals():
        from pipelines.cli.launch import launch

        launch("reproduce", reproduce_job)
