"""The whole pruned model against the dense one, with a clock: what a predicted time was worth."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.engines import EngineModel, runs_in_engine
from pipelines.evaluators import open_pool
from pipelines.prune.job import PruneJob
from pruning.costs.engine_speed import EngineComparison, EngineSpeed
from pruning.costs.latency import PHASES, TRANSFORMERS, LatencyTable, Phase
from pruning.costs.measured import CostRatios, ModelCost, SpeedComparison
from pruning.costs.speed import Spread
from pruning.costs.target import Target
from pruning.importance.channel_order import ChannelOrder
from pruning.models.gguf_source import gguf_source
from pruning.scoring.arithmetic import this_machine
from pruning.shape import ModelShape
from workers.evaluators.costs import SpeedEvaluator
from workers.tasks import BenchmarkSpec, SpeedSpec, SpeedTask

log = logging.getLogger(__name__)

_STDERRS = 2


def is_measured(job: PruneJob, arithmetic: Mapping[str, Any]) -> bool:
    """Whether this search does so at its end: by default where the table is of this device."""
    if job.timing is None or job.config.measure_latency is False:
        return False
    table, num_threads = job.timing.table, job.config.cluster.num_cpus_per_evaluator
    if table.engine != TRANSFORMERS:  # which runs beside the driver, wherever evaluators are
        arithmetic = this_machine(table.arithmetic, num_threads)
    differing = job.timing.differences(arithmetic)
    if job.config.measure_latency is None and differing:
        log.info(
            "latency: not measured, since the table is of another device (%s); measure_latency=true"
            " measures all the same",
            "; ".join(differing),
        )
        return False
    return True


def measured_latency(
    job: PruneJob, shape: ModelShape, order: ChannelOrder, folder: Path
) -> dict[str, Any]:
    """For summary.json: what both models take, in turns, at the load of the table and in its
    engine.

    Empty if they cannot be measured: a search that is done is not spoilt by that.
    """
    try:
        return {"measured": _measured(job, shape, order, folder)}
    except Exception as error:  # noqa: BLE001 - hours of search are behind it
        log.warning("latency: the pruned model could not be measured: %s", error)
        return {}


def _measured(
    job: PruneJob, shape: ModelShape, order: ChannelOrder, folder: Path
) -> dict[str, Any]:
    assert job.timing is not None
    table = job.timing.table
    log.info("measuring the pruned model against the dense one: %d rounds", table.settings.rounds)
    speeds = (
        _on_evaluator(job, table, shape, order)
        if table.engine == TRANSFORMERS
        else _in_engine(job, table, shape, folder)
    )
    measured: dict[str, Any] = {"device": speeds.device}
    for phase in PHASES:
        measured[phase] = _phase(table, shape, job.accounting.dense, speeds, phase)
        _warn(phase, measured[phase])
    for target in job.settings.targets:
        _warn_of_target(target, measured)
    return measured


@dataclass(frozen=True, slots=True)
class _Speeds:
    """Of both models, and pruned / dense within each round: `prefill_tokens_per_s` and
    `decode_tokens_per_s` of each.
    """

    device: str
    dense: ModelCost | EngineSpeed
    pruned: ModelCost | EngineSpeed
    ratio: CostRatios | EngineSpeed


def _on_evaluator(
    job: PruneJob, table: LatencyTable, shape: ModelShape, order: ChannelOrder
) -> _Speeds:
    cluster = job.config.cluster
    dense = BenchmarkSpec(job.checkpoint, table.dtype, num_threads=cluster.num_cpus_per_evaluator)
    spec = SpeedSpec(dense, replace(dense, shape=shape.text, order=order))
    placement = None if job.placement is None else replace(job.placement, num_evaluators=1)
    run = job.config.output_dir
    with open_pool(cluster, job.machine, placement, spec, SpeedEvaluator, run=run) as pool:
        task = SpeedTask(table.settings, ())
        [found] = [result for answers in pool.run([task]) for _, result in answers]
        device = pool.arithmetic.device
    assert isinstance(found, SpeedComparison)
    assert found.dense is not None
    assert found.pruned is not None
    assert found.ratios is not None
    return _Speeds(device, found.dense, found.pruned, found.ratios)


def _in_engine(job: PruneJob, table: LatencyTable, shape: ModelShape, folder: Path) -> _Speeds:
    """As exported to the engine of the table, on this machine."""
    num_threads = job.config.cluster.num_cpus_per_evaluator
    runs = runs_in_engine(
        table.engine,
        EngineModel(job.checkpoint, gguf_source(job.config.model.path), table.dtype, num_threads),
        {"dense": job.accounting.dense, "pruned": shape},
        table.settings,
        folder=folder,
    )
    found = EngineComparison.of(runs.seconds, table.settings, num_threads=num_threads)
    assert found.dense is not None
    assert found.pruned is not None
    assert found.ratio is not None
    return _Speeds(f"{runs.version}, {runs.device}", found.dense, found.pruned, found.ratio)


def _phase(
    table: LatencyTable, shape: ModelShape, dense: ModelShape, found: _Speeds, phase: Phase
) -> dict[str, Any]:
    """Seconds of both, and pruned / dense as measured and as predicted."""
    settings = table.settings
    count = {"prefill": settings.prompt_tokens, "decode": settings.new_tokens}[phase]
    tokens, name = settings.batch_size * count, f"{phase}_tokens_per_s"
    ratio: Spread = getattr(found.ratio, name)
    return {
        "dense_seconds": tokens / getattr(found.dense, name).median,
        "pruned_seconds": tokens / getattr(found.pruned, name).median,
        "ratio": {
            "median": 1 / ratio.median, "lowest": 1 / ratio.highest, "highest": 1 / ratio.lowest
        },
        "predicted_ratio": table.nanoseconds(shape, phase) / table.nanoseconds(dense, phase),
        "standard_error": table.ratio_error(shape, dense, phase),
    }  # fmt: skip


def _warn_of_target(target: Target, measured: Mapping[str, Any]) -> None:
    """Where less of a time is gone, as measured, than was asked for."""
    phases = {"latency": PHASES, "prefill": ("prefill",), "decode": ("decode",)}
    name = target.cost.name
    if name not in phases or isinstance(target.given, str):
        return
    pruned, dense = (
        sum(measured[phase][f"{whose}_seconds"] for phase in phases[name])
        for whose in ("pruned", "dense")
    )
    if (gone := 1 - pruned / dense) < target.given:
        log.warning(
            "%s: %g is to go, and as measured %.3f is gone, though by the table all of it; on a "
            "quiet machine measure the table again, or ask for more",
            target.name,
            target.given,
            gone,
        )


def _warn(phase: Phase, found: Mapping[str, Any]) -> None:
    """Where what was predicted, give or take its error, is outside of what the rounds measured."""
    predicted, measured = found["predicted_ratio"], found["ratio"]
    give = _STDERRS * (found["standard_error"] or 0.0)
    if measured["lowest"] <= predicted + give and predicted - give <= measured["highest"]:
        return
    log.warning(
        "latency: of the time of the %s %.3f are left as measured (%.3f to %.3f), and %.3f +- %.3f "
        "were predicted by the table; measure it again on a quiet machine, at the load that the "
        "model is for",
        phase,
        *(measured[name] for name in ("median", "lowest", "highest")),
        predicted,
        give,
    )
