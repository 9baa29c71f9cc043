"""Entry of `python -m pipelines.reproduce`: help and options come before what does the work."""

from __future__ import annotations

from pipelines.cli.launch import Job, launch


def reproduce_job() -> Job:
    """See `pipelines.reproduce.command`, which takes seconds to import."""
    from pipelines.reproduce.command import reproduce

    return reproduce


if __name__ == "__main__":
    launch("reproduce", reproduce_job)
