"""`python -m pipelines.prune`: a pretrained model goes in, its pruned shape and the whole path that led to it come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from pipelines.cli import launch
from pipelines.config import PruneConfig
from pipelines.console import log_to
from pipelines.farm import joined
from pipelines.folder import RunFolder
from pipelines.job import PruneJob, make_job, resumed
from pipelines.run import SearchRun
from pipelines.store import ScoreStore


def prune(raw: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Runs one search, or goes on with one; returns its summary.

    Raises:
        InputError: something that the user can mend, found before anything expensive starts.
    """
    log_to(None)
    config = PruneConfig.of(resumed(raw, overrides) if raw.resume else raw)
    with joined(config.cluster):
        return _run(make_job(config))


def _run(job: PruneJob) -> dict[str, Any]:
    with ScoreStore(job.config.store.url, job.config.store.retry_s) as store:
        folder = RunFolder(job.config.output_dir)
        try:
            record = folder.claim(job.identity())
            log_to(folder.path / "prune.log")
            return SearchRun(job, store, folder, record).go()
        finally:
            log_to(None)
            folder.release()


if __name__ == "__main__":
    launch("prune", prune)
