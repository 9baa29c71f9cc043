"""A search, and what the configuration asks for after it: recovery, evaluation, export."""

from __future__ import annotations

import logging
from typing import Any

from pipelines.cli.commands import command_line, not_on_path
from pipelines.cli.console import console, log_to, print_line
from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.export import ExportConfig
from pipelines.config.groups import ModelConfig
from pipelines.config.overrides import as_override
from pipelines.config.recover import RecoverConfig
from pipelines.evaluate.benchmarks import open_benchmarks
from pipelines.evaluate.engines import problems_of_engines
from pipelines.evaluate.evaluation_run import evaluate_run
from pipelines.evaluate.measurement import problems_of_cost
from pipelines.evaluate.models import EvaluatedModel, models_of_run, window_length
from pipelines.export.export_run import export_run, is_exported
from pipelines.plan.report import search_report
from pipelines.plan.tables import plan_table
from pipelines.prune.job import PruneJob
from pipelines.prune.search_run import SearchRun
from pipelines.recover.command import recover_in_folder
from pipelines.recover.job import RecoverJob, problems_before_search
from pipelines.runs.files import CHANNEL_ORDER, PRUNE_LOG, TRAJECTORY
from pipelines.runs.folder import RunFolder
from pipelines.runs.saved_run import PastRun, read_recovery, read_saved_run
from pipelines.store.scores import ScoreStore
from pruning.errors import InputError
from pruning.export.folder import format_problems
from pruning.models.gguf_source import gguf_source

log = logging.getLogger(__name__)


def run_job(job: PruneJob) -> dict[str, Any]:
    """One search in its folder, then what the configuration asks for; returns its summary."""
    validate_post_steps(job)
    with (
        ScoreStore(job.config.store.url, job.config.store.retry_s) as store,
        RunFolder(job.config.output_dir) as folder,
    ):
        try:
            record = folder.claim(job.identity())
            log_to(folder.path / PRUNE_LOG)
            if console.is_terminal and not (folder.path / TRAJECTORY).exists():
                _show_plan(job)
            summary = SearchRun(job, store, folder, record).go()
            run_post_steps(job, folder)
            for step in next_steps(job, folder):
                print_line(step)
            return summary
        finally:
            log_to(None)


def _show_plan(job: PruneJob) -> None:
    """For a person who waits for the evaluators: how many steps and how much memory. Time is on the
    bar, once they compute.
    """
    hidden_size = job.checkpoint.config().hidden_size
    found = search_report(job.config, job.accounting, job.settings, hidden_size=hidden_size)
    console.print(plan_table(found.report))


def next_steps(job: PruneJob, folder: RunFolder) -> list[str]:
    """What can be done with the run that its configuration did not ask for, as lines to print."""
    result = folder.path / "recovery" if job.config.recovery.wanted else folder.path
    run = as_override("run", result)
    steps = {
        "to measure it": () if job.config.evaluation.wanted else ("evaluate", run),
        "to write it as a checkpoint": ()
        if job.config.export
        else ("export", run, "format=transformers"),
        "to read of it on a page": ("report", str(folder.path)),
    }
    lines = [f"{what}: {command_line(*words)}" for what, words in steps.items() if words]
    return [*filter(None, [not_on_path()]), *lines]


def validate_post_steps(job: PruneJob) -> None:
    """What evaluation and export need is asked for before the hours of the search, not after them.

    Raises:
        InputError: tasks or texts are missing, or what is asked for cannot express this model.
    """
    config, accounting = job.config, job.accounting
    _validate_formats(job)
    if config.recovery.wanted:
        recovery = RecoverConfig.after(config, "RUN")
        problems = problems_before_search(
            recovery, job.checkpoint, accounting, job.dtype, config.search.target_ratio or 0.0
        )
        if problems:
            raise InputError("\n".join(problems))
    if config.evaluation.wanted:
        dense = [
            EvaluatedModel(
                "dense", job.checkpoint, job.fingerprint, job.dtype, accounting.num_dense_parameters
            )
        ]
        problems = problems_of_cost(config.evaluation, dense)
        problems += problems_of_engines(
            config.evaluation, job.checkpoint, gguf_source(config.model.path)
        )
        if problems:
            raise InputError("\n".join(problems))
        with open_benchmarks(
            config.evaluation,
            job.checkpoint.tokenizer,
            window_length(config.evaluation.sequence_length, dense),
        ):
            pass


def _validate_formats(job: PruneJob) -> None:
    """A recovery and an evaluation open pruned models as `transformers` does. Where neither is
    asked for, what they could not do later is said.
    """
    config, accounting = job.config, job.accounting
    opened = config.evaluation.wanted or config.recovery.wanted
    wanted = {"transformers"} if opened else set[str]()
    if config.export is not None:
        wanted.add(config.export)
    problems = [
        problem
        for name in sorted(wanted or {"transformers"})
        for problem in format_problems(
            name, job.checkpoint.config(), accounting.family, accounting.geometry
        )
    ]
    if problems and wanted:
        raise InputError("\n".join(problems))
    for problem in problems:
        log.warning("%s", problem)


def run_post_steps(job: PruneJob, folder: RunFolder) -> None:
    """What the configuration asks for after the search in this folder, which the caller holds.

    Evaluation comes before the export: its numbers are on the model card. After a recovery both are
    of its model, and in its folder. All get the checkpoint that the search has, whose weights are
    not hashed again.
    """
    if job.config.recovery.wanted:
        config = RecoverConfig.after(job.config, str(folder.path))
        recover_in_folder(RecoverJob.of(config, _run_of(job, str(folder.path))))
        log_to(folder.path / PRUNE_LOG)
        with RunFolder(str(folder.path / "recovery")) as recovered:
            _measure_and_write(job, recovered)
    else:
        _measure_and_write(job, folder)


def _measure_and_write(job: PruneJob, folder: RunFolder) -> None:
    """Evaluation and export of what is in a folder."""
    config, path = job.config, str(folder.path)
    if config.evaluation.wanted:
        evaluation = EvaluateConfig.like(
            config, model=ModelConfig("", None, "auto", trust_remote_code=False), run=path
        )
        evaluate_run(evaluation, folder, models_of_run(evaluation, _run_of(job, path)))
    if config.export is not None:
        run = _run_of(job, path)
        if not is_exported(run, folder.path / config.export):
            export_run(
                run, ExportConfig.of_run(path, config.export), tracking_uri=config.tracking.uri
            )


def _run_of(job: PruneJob, path: str) -> PastRun:
    saved = read_saved_run(path, option="output_dir", needs=(CHANNEL_ORDER,))
    run, recovery = saved.with_model(job.checkpoint, job.accounting), read_recovery(path)
    return run if recovery is None else run.recovered(recovery)
