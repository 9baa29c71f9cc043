"""`multipruner prune`: a pretrained model goes in, its pruned shape and the whole path that
led to it come out.

On request it goes all the way: the pruned model is measured and written as a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pipelines.cli.console import log_to
from pipelines.config.overrides import option_of
from pipelines.config.prune import PruneConfig
from pipelines.evaluators import joined
from pipelines.prune.job import make_job
from pipelines.prune.loaded import DenseModel
from pipelines.prune.pipeline import run_job
from pipelines.runs.files import RUN
from pipelines.runs.resume import resumed


def prune(
    raw: DictConfig, overrides: Sequence[str], dense: DenseModel | None = None
) -> dict[str, Any]:
    """Runs one search, or goes on with one; returns its summary.

    Args:
        dense: a loaded model, whose copy is `model.path`.

    Raises:
        InputError: invalid input, found before anything expensive starts.
    """
    log_to(None)
    if raw.resume:
        config = PruneConfig.of(resumed(raw, overrides))
    elif raw.output_dir and (Path(raw.output_dir).expanduser() / RUN).exists():
        config = PruneConfig.of(raw)
    else:
        config = PruneConfig.of_new(raw, [option_of(override) for override in overrides])
    is_new = dense is not None and dense.write(config)
    with joined(config.cluster):
        try:
            job = make_job(config)
        except BaseException:
            if dense is not None and is_new:
                dense.discard()
            raise
        return run_job(job)
