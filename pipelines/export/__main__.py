"""Entry of `python -m pipelines.export`: help and options are there before what does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.cli.signals import exit_on_signals

if TYPE_CHECKING:
    from pipelines.cli.launch import Job


def export_job() -> Job:
    """See `pipelines.export.command`, which takes seconds to import."""
    from pipelines.export.command import export

    return export


if __name__ == "__main__":
    with exit_on_signals():
        from pipelines.cli.launch import launch

        launch("export", export_job)
