"""Entry of `python -m pipelines.recover`: help and options are there before what does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.cli.signals import exit_on_signals

if TYPE_CHECKING:
    from pipelines.cli.launch import Job


def recover_job() -> Job:
    """See `pipelines.recover.command`, which takes seconds to import."""
    from pipelines.recover.command import recover

    return recover


if __name__ == "__main__":
    with exit_on_signals():
        from pipelines.cli.launch import launch

        launch("recover", recover_job)
