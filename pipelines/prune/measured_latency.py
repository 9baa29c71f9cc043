"""The whole pruned model against the dense one, with a clock: what a predicted time was worth."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipelines.evaluators import open_pool
from pipelines.prune.job import PruneJob
from pruning.costs.latency import PHASES, LatencyTable, Phase
from pruning.costs.measured import SpeedComparison
from pruning.costs.speed import Spread
from pruning.costs.target import Target
from pruning.importance.channel_order import ChannelOrder
from pruning.shape import ModelShape
from workers.evaluators.costs import SpeedEvaluator
from workers.tasks import BenchmarkSpec, SpeedSpec, SpeedTask

log = logging.getLogger(__name__)

_STDERRS = 2


def is_measured(job: PruneJob, arithmetic: Mapping[str, Any]) -> bool:
    """Whether this search does so at its end: by default where the table is of this device."""
    if job.timing is None or job.config.measure_latency is False:
        return False
    differing = job.timing.differences(arithmetic)
    if job.config.measure_latency is None and differing:
        log.info(
            "latency: not measured, since the table is of another device (%s); measure_latency=true"
            " measures all the same",
            "; ".join(differing),
        )
        return False
    return True


def measured_latency(job: PruneJob, shape: ModelShape, order: ChannelOrder) -> dict[str, Any]:
    """For summary.json: what both models take, in turns, at the load of the table.

    Empty if they cannot be measured: a search that is done is not spoilt by that.
    """
    try:
        return {"measured": _measured(job, shape, order)}
    except Exception as error:  # noqa: BLE001 - hours of search are behind it
        log.warning("latency: the pruned model could not be measured: %s", error)
        return {}


def _measured(job: PruneJob, shape: ModelShape, order: ChannelOrder) -> dict[str, Any]:
    assert job.timing is not None
    table, cluster = job.timing.table, job.config.cluster
    dense = BenchmarkSpec(job.checkpoint, table.dtype, num_threads=cluster.num_cpus_per_evaluator)
    spec = SpeedSpec(dense, replace(dense, shape=shape.text, order=order))
    placement = None if job.placement is None else replace(job.placement, num_evaluators=1)
    log.info("measuring the pruned model against the dense one: %d rounds", table.settings.rounds)
    run = job.config.output_dir
    with open_pool(cluster, job.machine, placement, spec, SpeedEvaluator, run=run) as pool:
        task = SpeedTask(table.settings, ())
        [found] = [result for answers in pool.run([task]) for _, result in answers]
        device = pool.arithmetic.device
    assert isinstance(found, SpeedComparison)
    measured: dict[str, Any] = {"device": device}
    for phase in PHASES:
        measured[phase] = _phase(table, shape, job.accounting.dense, found, phase)
        _warn(phase, measured[phase])
    for target in job.settings.targets:
        _warn_of_target(target, measured)
    return measured


def _phase(
    table: LatencyTable,
    shape: ModelShape,
    dense: ModelShape,
    found: SpeedComparison,
    phase: Phase,
) -> dict[str, Any]:
    """Seconds of both, and pruned / dense as measured and as predicted."""
    settings = found.settings
    count = {"prefill": settings.prompt_tokens, "decode": settings.new_tokens}[phase]
    tokens, name = settings.batch_size * count, f"{phase}_tokens_per_s"
    ratio: Spread = getattr(found.ratios, name)
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
