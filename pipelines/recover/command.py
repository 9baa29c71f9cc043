"""`multipruner recover`: a pruned model goes in, that of a search or of a shape file; the same
model trained for a short time comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipelines.cli.console import console, log_to
from pipelines.config.overrides import option_of
from pipelines.config.recover import RecoverConfig
from pipelines.errors import Failed
from pipelines.evaluators import joined
from pipelines.recover.job import RecoverJob
from pipelines.recover.plan import plan_table, recovery_plan
from pipelines.recover.recovery_run import run_recovery
from pipelines.runs.files import CONFIG, RECOVER_LOG
from pipelines.runs.folder import RunFolder
from pipelines.runs.resume import make_absolute, saved_url, with_settings_of_run
from workers.training.trainer import TrainingFailed


def recover(raw: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Runs one recovery, or goes on with one; returns what recovery.json says. With `plan=true` it
    says what one would take, and writes nothing.

    Raises:
        InputError: invalid input, found before any weight is loaded.
        Failed: training came to nothing.
    """
    log_to(None)
    given = [option_of(override) for override in overrides]
    # An experiment says what text it is about; else it is that of the search.
    groups = ("tracking",) if "experiment" in given else ("calibration", "tracking")
    config = RecoverConfig.of(with_settings_of_run(raw, given, groups), given)
    if config.plan:
        found = recovery_plan(RecoverJob.of(config))
        console.print(plan_table(found))
        return found
    with joined(config.cluster):
        return recover_in_folder(RecoverJob.of(config))


def recover_in_folder(job: RecoverJob) -> dict[str, Any]:
    """The same for a job that is ready, in the folder that its configuration says.

    Raises:
        Failed: training came to nothing.
    """
    config = job.config
    with RunFolder(config.output_dir or f"{config.run}/recovery") as folder:
        try:
            folder.claim(job.identity())
            log_to(folder.path / RECOVER_LOG)
            folder.write(CONFIG, OmegaConf.to_yaml(_saved_form(config)))
            job.write_source(folder)
            return run_recovery(job, folder)
        except TrainingFailed as error:
            raise Failed(f"cluster: {error}; the same command goes on") from error
        finally:
            log_to(None)


def _saved_form(config: RecoverConfig) -> DictConfig:
    """As it is saved: paths absolute, passwords in URLs masked."""
    saved: DictConfig = OmegaConf.structured(config)
    make_absolute(saved, config.path_options)
    saved.tracking.uri = saved_url(config.tracking.uri)
    return saved
