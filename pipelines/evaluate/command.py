"""`multipruner evaluate`: a model goes in, dense or pruned; how good it is and what it
costs comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from pipelines.cli.console import log_to
from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.overrides import option_of
from pipelines.evaluate.evaluation_run import identity_of, run_evaluation
from pipelines.evaluate.measurement import open_job
from pipelines.evaluators import joined
from pipelines.runs.files import EVALUATION_LOG
from pipelines.runs.folder import RunFolder
from pipelines.runs.resume import with_settings_of_run


def evaluate(raw: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Runs one evaluation; returns what evaluation.json says.

    Raises:
        InputError: invalid input, found before anything expensive starts.
    """
    log_to(None)
    given = [option_of(override) for override in overrides]
    config = EvaluateConfig.of(with_settings_of_run(raw, given), given)
    with (
        joined(config.cluster),
        open_job(config) as job,
        RunFolder(config.output_dir or config.run) as folder,
    ):
        try:
            if job.models.run is None or folder.path != job.models.run.folder:
                folder.claim(identity_of(job))
            log_to(folder.path / EVALUATION_LOG)
            return run_evaluation(job, folder)
        finally:
            log_to(None)
