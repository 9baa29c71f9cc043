"""Entry of `python -m pipelines.plan`: help and options are there before what does the work."""

from __future__ import annotations

from pipelines.cli.launch import Job, launch
from pipelines.config.grid import as_grid


def plan_job() -> Job:
    """See `pipelines.plan.command`, which takes seconds to import."""
    from pipelines.plan.command import plan

    return plan


if __name__ == "__main__":
    launch("plan", plan_job, prepare=as_grid)
