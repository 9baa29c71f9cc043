"""`multipruner reproduce`: what an experiment expects beside what comes out here, and
whether the difference is within its tolerance.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pipelines.cli.commands import command_line
from pipelines.cli.console import console, log_to, print_line
from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.overrides import option_of
from pipelines.config.reproduce import ReproduceConfig
from pipelines.errors import Failed
from pipelines.evaluate.benchmarks import open_benchmarks
from pipelines.evaluate.evaluation_run import evaluate_run
from pipelines.evaluate.models import EvaluatedModel, ModelsUnderTest, window_length
from pipelines.evaluators import joined
from pipelines.prune.job import make_job
from pipelines.prune.pipeline import run_job
from pipelines.reproduce.counts import (
    count_checks,
    expected_shape,
    pruned_counts,
    published_accounting,
)
from pipelines.reproduce.divergence import (
    divergence_text,
    first_divergence,
    layer_differences,
    shape_check,
    trajectory_checks,
)
from pipelines.reproduce.experiment_file import record_experiment
from pipelines.reproduce.verdict import (
    Check,
    compared,
    compared_quality,
    not_checked,
    summed_up,
    table,
)
from pipelines.runs.candidates import search_in_words
from pipelines.runs.files import (
    CHANNEL_ORDER,
    EVALUATION,
    REPRODUCE_LOG,
    SHAPE,
    VERDICT,
    read_json,
    read_with,
)
from pipelines.runs.folder import RunFolder
from pipelines.runs.provenance import git_revision, versions
from pipelines.runs.saved_run import read_saved_run
from pipelines.runs.shape_file import order_of, read_shape
from pruning.canonical_json import dump_json
from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.importance.channel_order import ChannelOrder
from pruning.models.checkpoint import Checkpoint
from pruning.models.display_name import display_name
from pruning.models.dtypes import resolve_dtype
from pruning.models.find import find_checkpoint
from pruning.shape import ModelShape
from workers.cluster.machine import LocalMachine

log = logging.getLogger(__name__)


def reproduce(raw: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Compares once; returns what verdict.json says.

    Raises:
        InputError: invalid input.
        Failed: a figure is outside its tolerance. The verdict is written before.
    """
    log_to(None)
    config = ReproduceConfig.given_with(raw, [option_of(override) for override in overrides])
    if config.record is not None:
        assert config.record_as is not None
        path = record_experiment(config.record, config.record_as)
        print_line(
            f"written to {path}; compare with it: "
            + command_line("reproduce", f"experiment={config.record_as}", "mode=search")
        )
        return {"experiment": str(path)}
    with joined(config.cluster):
        return {"counts": _counts, "shape": _shape, "search": _search}[config.mode](config)


def _counts(config: ReproduceConfig) -> dict[str, Any]:
    checks = count_checks(config)
    with RunFolder(config.output_dir) as folder:
        return _conclude(config, folder, checks)


def _shape(config: ReproduceConfig) -> dict[str, Any]:
    """The expected shape on the real model, which the order of its channels is found from anew."""
    model, expected = config.model, config.reference
    checkpoint = find_checkpoint(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    accounting = published_accounting(
        expected, checkpoint.config(), trust_remote_code=model.trust_remote_code
    )
    shape = (
        read_shape(Path(config.shape).expanduser(), accounting)
        if config.shape
        else expected_shape(expected, accounting)
    )
    if shape is None:
        raise InputError(
            "expected.shape: this experiment has none; give shape=FILE, or mode=search"
        )
    with open_benchmarks(
        config.evaluation, checkpoint.tokenizer, _window_length(config, checkpoint)
    ):
        pass  # what is missing is said before the weights are read
    checkpoint.check_weights()
    with RunFolder(config.output_dir) as folder:
        try:
            fingerprint = checkpoint.fingerprint()
            folder.claim(
                {
                    "evaluation.model": fingerprint,
                    "evaluation.shape": shape.text,
                    "search.importance": config.search.importance,
                }
            )
            log_to(folder.path / REPRODUCE_LOG)
            folder.write(SHAPE, dump_json(shape.to_json()))
            models = _models_under_test(
                config,
                checkpoint,
                fingerprint,
                accounting,
                shape,
                _order(config, folder, checkpoint, accounting, shape),
            )
            report = evaluate_run(
                EvaluateConfig.like(config, model=config.model, run=None), folder, models
            )
            dense = compared(
                "parameters, dense",
                expected.dense.num_parameters,
                accounting.num_dense_parameters,
                expected.tolerance.num_parameters,
            )
            return _conclude(
                config,
                folder,
                [dense, *pruned_counts(expected, accounting, shape), *_quality(config, report)],
            )
        finally:
            log_to(None)


def _search(config: ReproduceConfig) -> dict[str, Any]:
    """The whole search, by the code that `pipelines.prune` runs, in a folder that is one of its."""
    expected = config.reference
    job = make_job(config.of_search)
    wanted = expected_shape(expected, job.accounting)
    summary = run_job(job)
    with RunFolder(summary["output_dir"]) as folder:
        run = read_saved_run(str(folder.path))
        shape = ModelShape.parse(run.lines[-1]["shape"])
        accounting = published_accounting(
            expected, job.checkpoint.config(), trust_remote_code=config.model.trust_remote_code
        )
        checks = [
            compared(
                "parameters, dense",
                expected.dense.num_parameters,
                accounting.num_dense_parameters,
                expected.tolerance.num_parameters,
            )
        ]
        checks += [
            *pruned_counts(expected, accounting, shape),
            *trajectory_checks(expected, run.lines),
        ]
        checks.append(
            not_checked("layers whose shape differs", "no shape is expected")
            if wanted is None
            else shape_check(wanted, shape)
        )
        report = (
            read_json(folder.path / EVALUATION, option="output_dir")
            if config.evaluation.wanted
            else None
        )
        divergence = first_divergence(expected, run.lines)
        taken = {name: summary["evaluations"].get(name) for name in ("candidates", "unscored")}
        found = {
            **({"evaluations": taken} if job.settings.lazy else {}),
            "divergence": divergence,
            "layers": layer_differences(wanted, shape) if wanted is not None else None,
        }
        return _conclude(config, folder, checks + _quality(config, report), found)


def _conclude(
    config: ReproduceConfig,
    folder: RunFolder,
    checks: Sequence[Check],
    found: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Verdict on the console and in the folder.

    Raises:
        Failed: a check is.
    """
    expected, name = config.reference, display_name(config.model.path)
    summary = summed_up(checks)
    report = (
        {
            "model": name,
            "mode": config.mode,
            "source": expected.source,
            "published_settings": dict(expected.settings),
        }
        | summary
        | (found or {})
    )
    path = folder.write(
        VERDICT, dump_json(report | {"versions": versions(), "git_revision": git_revision()})
    )
    console.print(
        table(
            f"{name} to ratio {config.search.target_ratio}, mode={config.mode}. Expected: "
            f"{expected.source}",
            checks,
        )
    )
    if expected.settings:
        shown = ", ".join(f"{setting} {value}" for setting, value in expected.settings.items())
        print_line(
            f"published with {shown}; the experiment's file says why its own settings differ"
        )
    for line in _differences(found or {}):
        print_line(line)
    print_line(
        f"{summary['num_within']} within, {summary['num_outside']} outside, "
        f"{summary['num_not_checked']} not checked; {path}"
    )
    outside = [check.quantity for check in checks if check.verdict == "outside"]
    if outside:
        raise Failed(f"outside the tolerance: {'; '.join(outside)}")
    return report


def _differences(found: dict[str, Any]) -> list[str]:
    """What a search left out, where it went another way, and what that came to."""
    lines = (
        [f"candidates scored: {search_in_words(found['evaluations'])} (search.selection=lazy)"]
        if "evaluations" in found
        else []
    )
    if found.get("divergence"):
        lines.append(f"first divergence: {divergence_text(found['divergence'])}")
    layers = [
        f"layer {each['layer']} {each['measured']} instead of {each['expected']}"
        for each in found.get("layers") or ()
    ]
    return lines + (
        [f"{len(layers)} layers differ (KV heads x MLP channels): {', '.join(layers)}"]
        if layers
        else []
    )


def _quality(config: ReproduceConfig, report: dict[str, Any] | None) -> list[Check]:
    expected = config.reference
    if report is None:
        return [not_checked("perplexity and accuracies", "evaluation=none")]
    dense = (
        compared_quality("dense", expected.dense, report["dense"], expected.tolerance)
        if report["dense"]
        else []
    )
    return dense + compared_quality("pruned", expected.pruned, report, expected.tolerance)


def _order(
    config: ReproduceConfig,
    folder: RunFolder,
    checkpoint: Checkpoint,
    accounting: Accounting,
    shape: ModelShape,
) -> ChannelOrder:
    """Found once: the same command reads it from its folder."""
    path = folder.path / CHANNEL_ORDER
    if path.exists():
        return read_with(ChannelOrder.load, path, option="output_dir")
    if config.search.importance == "activation":
        job = make_job(config.of_search)
        with job.pool() as pool:
            return job.channel_order(pool, folder)
    order = order_of(shape, path, config.search.importance, checkpoint, accounting)
    folder.write_with(path.name, order.save)
    return order


def _models_under_test(
    config: ReproduceConfig,
    checkpoint: Checkpoint,
    fingerprint: str,
    accounting: Accounting,
    shape: ModelShape,
    order: ChannelOrder,
) -> ModelsUnderTest:
    machine = LocalMachine.detect(num_gpus=config.cluster.num_gpus)
    dtype = resolve_dtype(
        config.model.dtype,
        on_gpu=machine.gpus_per_evaluator(config.cluster.num_gpus_per_evaluator) > 0,
    )
    dense = EvaluatedModel("dense", checkpoint, fingerprint, dtype, accounting.num_dense_parameters)
    pruned = EvaluatedModel(
        "pruned",
        checkpoint,
        fingerprint,
        dtype,
        accounting.num_stored_parameters(shape),
        shape,
        order,
    )
    models = (dense, pruned) if config.evaluation.dense else (pruned,)
    name = display_name(config.model.path)
    return ModelsUnderTest(name, config.model.path, models, shape.text, accounting.ratio(shape))


def _window_length(config: ReproduceConfig, checkpoint: Checkpoint) -> int:
    return window_length(
        config.evaluation.sequence_length, [EvaluatedModel("dense", checkpoint, "", "float32", 0)]
    )
