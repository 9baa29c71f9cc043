"""Entry of `python -m pipelines.evaluate`: help and options are there before what does the work."""

from __future__ import annotations

from pipelines.cli.launch import Job, launch


def evaluate_job() -> Job:
    """See `pipelines.evaluate.command`, which takes seconds to import."""
    from pipelines.evaluate.command import evaluate

    return evaluate


if __name__ == "__main__":
    launch("evaluate", evaluate_job)
