"""One evaluation from start to finish: evaluators up, benchmarks, costs, then files, table and
MLflow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipelines.cli.console import WorkProgress, show_result
from pipelines.cli.repeating import repeating
from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.redaction import masked_url
from pipelines.evaluate.engines import speed_in_engines
from pipelines.evaluate.measurement import EvaluationJob, Measured, ModelMeasurement, open_job
from pipelines.evaluate.models import ModelRole, ModelsUnderTest
from pipelines.evaluate.results import as_csv, table
from pipelines.runs.files import EVALUATION, EVALUATION_TABLE, RUN
from pipelines.runs.folder import RunFolder
from pipelines.runs.provenance import git_revision, versions
from pipelines.runs.resume import make_absolute, saved_url
from pipelines.store.scores import ScoreStore
from pipelines.tracking.description import MEASURED, evaluation_description
from pipelines.tracking.metrics import (
    evaluation_metrics,
    evaluation_params,
    evaluation_tags,
    metrics_of_text,
)
from pipelines.tracking.tracker import Tracker
from pruning.canonical_json import dump_json

log = logging.getLogger(__name__)


def evaluate_run(
    config: EvaluateConfig, folder: RunFolder, models: ModelsUnderTest | None = None
) -> dict[str, Any]:
    """The same for a search that has just ended, in its folder, which the caller holds.

    `config.run` is that folder.

    Args:
        models: instead of a search, models that the caller has.
    """
    with open_job(config, models) as job:
        return run_evaluation(job, folder)


def run_evaluation(job: EvaluationJob, folder: RunFolder) -> dict[str, Any]:
    """Measures every model of the job; returns the report, which is in the folder by then."""
    config, started = job.config, time.time()
    tracker = _tracker(job, folder, started)
    tags = evaluation_tags(job.models.main.fingerprint, of_search=job.models.run is not None)
    tracker.start(_params(job), tags, {})
    try:
        with (
            ScoreStore(config.store.url, config.store.retry_s) as store,
            WorkProgress("tokens") as progress,
        ):
            measurement = ModelMeasurement(job, store, progress)
            measured = {model.role: measurement.measure(model) for model in job.models.evaluated}
            cost = measurement.cost() if config.evaluation.cost else None
        engines = speed_in_engines(config, job.models, folder.path)
        report = _report(job, measured, cost, time.time() - started) | {"engines": engines}
        folder.write(EVALUATION, dump_json(report))
        folder.write(EVALUATION_TABLE, as_csv(report))
        _log_metrics(tracker, report, step=len(job.models.run.lines) if job.models.run else 0)
        tracker.describe_further(MEASURED, evaluation_description(report, _command(job)))
        tracked = tracker.finish(
            succeeded=True, artifacts=[folder.path / EVALUATION, folder.path / EVALUATION_TABLE]
        )
    except BaseException as error:
        tracker.fail(error, [config.store.url])
        raise
    where = (
        f"; in MLflow: run {tracker.run_id} of {masked_url(config.tracking.uri)}" if tracked else ""
    )
    show_result(table(report), f"everything is in {folder.path / EVALUATION}{where}")
    return report


def _report(
    job: EvaluationJob,
    measured: Mapping[ModelRole, Measured],
    cost: Mapping[str, Any] | None,
    seconds: float,
) -> dict[str, Any]:
    models, benchmarks, main = job.models, job.benchmarks, measured[job.models.main.role]
    dense, pruned = measured.get("dense"), measured.get("pruned")
    return {
        "model": models.name,
        "source": models.source,
        "shape": models.shape,
        "ratio": models.ratio,
        **main.to_json(),
        "dense": dense.to_json() if dense is not None else None,
        **({} if pruned is None or pruned is main else {"pruned": pruned.to_json()}),
        "cost": cost,
        "settings": _settings(job),
        "fingerprints": {
            **{model.role: model.fingerprint for model in models.evaluated},
            "tokenizer": models.main.tokenizer_fingerprint(),
            "channel_order": models.main.order.fingerprint if models.main.order else None,
            "texts": {name: tokens.fingerprint for name, tokens in benchmarks.windows.items()},
        },
        "num_windows": {name: tokens.num_sequences for name, tokens in benchmarks.windows.items()},
        "device": main.device,
        "num_evaluators": main.num_evaluators,
        "answers": {
            kind: sum(each.answers[kind] for each in measured.values())
            for kind in ("computed", "reused")
        },
        "num_answers_of_other_arithmetic": sum(
            each.num_other_arithmetic for each in measured.values()
        ),
        "num_truncated_requests": sum(each.num_truncated for each in measured.values()),
        "faults": {role: dict(each.faults) for role, each in measured.items()},
        "seconds": round(seconds, 1),
        "seconds_of": {role: round(each.seconds, 1) for role, each in measured.items()},
        "tracking": {"uri": masked_url(job.config.tracking.uri)},
        "versions": versions(),
        "git_revision": git_revision(),
    }


def _settings(job: EvaluationJob) -> dict[str, Any]:
    """With everything resolved."""
    settings = asdict(job.config.evaluation) | {
        "batch_size": job.batch_size,
        "dtype": job.models.main.dtype,
    }
    lengths = [tokens.sequence_length for tokens in job.benchmarks.windows.values()]
    return settings | {
        "sequence_length": lengths[0] if lengths else None,
        "num_threads": job.config.cluster.num_cpus_per_evaluator,
    }


def identity_of(job: EvaluationJob) -> dict[str, Any]:
    """Whose evaluation a folder holds; what is measured may change from one command to the next,
    since every answer is in the store.
    """
    main = job.models.main
    identity = {"evaluation.model": main.fingerprint, "evaluation.shape": job.models.shape}
    recovered = job.models.run is not None and job.models.run.recovery is not None
    if (job.config.shape is not None or recovered) and main.order is not None:
        identity["evaluation.order"] = main.order.fingerprint
    return identity


def _tracker(job: EvaluationJob, folder: RunFolder, started: float) -> Tracker:
    """The MLflow run: that of the search, or one that the folder remembers, or a new one."""
    run, tracking = job.models.run, job.config.tracking
    record = run.record if run is not None else folder.read(RUN) or {}
    if run is not None and saved_url(tracking.uri) != run.config.tracking.uri:
        record = {}  # the search's page is elsewhere

    def remember(run_id: str) -> None:
        if run is None:
            folder.remember(mlflow_run_id=run_id)

    return Tracker(
        uri=tracking.uri,
        experiment=tracking.experiment,
        run_name=f"evaluation of {job.models.name}"
        + (f" {job.models.ratio:.0%}" if job.models.ratio is not None else ""),
        started=started,
        run_id=record.get("mlflow_run_id"),
        on_run_id=remember,
        keeps_status=run is not None and record.get("mlflow_run_id") is not None,
    )


def _log_metrics(tracker: Tracker, report: Mapping[str, Any], *, step: int) -> None:
    """Of a search, its model's too; each text is a dataset."""
    metrics, of_model = evaluation_metrics(report), report["shape"] is not None
    for name, digest in report["fingerprints"]["texts"].items():
        of_text = metrics_of_text(metrics, name)
        metrics = {key: value for key, value in metrics.items() if key not in of_text}
        tracker.log_metrics(
            of_text, step=step, timestamp=time.time(), of_model=of_model, dataset=(name, digest)
        )
    tracker.log_metrics(metrics, step=step, timestamp=time.time(), of_model=of_model)


def _command(job: EvaluationJob) -> str:
    names = ("run", "model", "checkpoint", "shape", "importance", "evaluation")
    config = OmegaConf.structured(job.config)
    make_absolute(config, ("run", "model.path", "checkpoint", "shape", "evaluation.data_dir"))
    return repeating("evaluate", config, names)


def _params(job: EvaluationJob) -> dict[str, Any]:
    models = job.models
    if models.run is not None:
        return {}  # the page of the search has its own
    source = str(Path(models.source))
    return evaluation_params(_settings(job), model=models.name, source=source, shape=models.shape)
