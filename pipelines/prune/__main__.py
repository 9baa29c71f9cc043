"""Entry of `python -m pipelines.prune`: help and options are there before what does the work."""

from __future__ import annotations

from pipelines.cli.launch import Job, launch


def prune_job() -> Job:
    """See `pipelines.prune.command`, which takes seconds to import."""
    from pipelines.prune.command import prune

    return prune


if __name__ == "__main__":
    launch("prune", prune_job)
