"""Entry of `python -m pipelines.export`: help and options are there before what does the work."""

from __future__ import annotations

from pipelines.cli.launch import Job, launch


def export_job() -> Job:
    """See `pipelines.export.command`, which takes seconds to import."""
    from pipelines.export.command import export

    return export


if __name__ == "__main__":
    launch("export", export_job)
