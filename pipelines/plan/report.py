"""What plan.json says of one search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipelines.config.prune import PruneConfig
from pipelines.config.target import targets_json
from pipelines.plan.estimate import (
    TOKENS_PER_ROW,
    num_sequences,
    planned_recovery,
    planned_statistics,
    search_flops,
    search_plan,
)
from pipelines.plan.serving import serving
from pruning.costs.accounting import Accounting
from pruning.models.display_name import display_name
from pruning.models.dtypes import resolve_dtype
from pruning.search.settings import SearchSettings
from pruning.search.strategies import STRATEGIES
from workers.cluster.machine import LocalMachine
from workers.evaluators.memory import shape_evaluator_bytes


@dataclass(frozen=True, slots=True, eq=False)
class SearchReport:
    """The plan of one search, without a rate.

    Args:
        report: what plan.json says, but for `rate` and `hours`.
        hidden_size: of the model.
        block_flops: of the block stage alone; None: not known.
    """

    report: Mapping[str, Any]
    accounting: Accounting
    hidden_size: int
    block_flops: float | None

    def with_rate(self, rate: Mapping[str, Any]) -> dict[str, Any]:
        """All of plan.json.

        Args:
            rate: of `pipelines.plan.rate.Rates`.
        """
        flops, tflops = self.report["flops"], rate["tflops"]
        count = self.report["num_evaluators"]
        hours = None if flops is None or not tflops else flops / (tflops * 1e12 * count * 3600)
        found = {**self.report, "rate": dict(rate), "hours": hours}
        if "recovery" in found:
            flops = found["recovery"]["flops"]
            hours = None if flops is None or not tflops else flops / (tflops * 1e12 * 3600)
            found["recovery"] = found["recovery"] | {"hours": hours}
        return found


def search_report(
    config: PruneConfig, accounting: Accounting, settings: SearchSettings, *, hidden_size: int
) -> SearchReport:
    """Steps, evaluations, FLOPs and memory of one search, whose target is within reach.

    Raises:
        InputError: more threads for an evaluator than this machine has cores.
    """
    found = search_plan(accounting, settings)
    calibration = config.calibration
    dtype, peak_bytes, num_evaluators = _evaluators(config, accounting, hidden_size)
    samples = {"block": calibration.num_block_samples, "width": calibration.num_width_samples}
    sequences = {
        name: num_sequences(calibration.source, count, calibration.sequence_length)
        for name, count in samples.items()
    }
    batches = {name: -(-count // calibration.batch_size) for name, count in sequences.items()}
    lengths = {"sequence_length": calibration.sequence_length, "batch_size": calibration.batch_size}
    flops, block_flops = (
        search_flops(accounting, each, sequences, **lengths, num_evaluators=num_evaluators)
        for each in (found, replace(found, stages=found.stages[:1]))
    )
    statistics = None
    if config.search.compensation != "none":
        statistics = planned_statistics(
            accounting,
            num_tokens=sequences["width"] * calibration.sequence_length,
            num_evaluators=num_evaluators,
            sequence_length=calibration.sequence_length,
        )
        flops = None if flops is None else flops + (statistics["flops"] or 0)
    report = {
        "model": display_name(config.model.path),
        "num_parameters": accounting.num_dense_parameters,
        "target_ratio": config.search.target_ratio,
        **targets_json(config.search.asked),
        **found.to_json(),
        "calibration": {
            name: {
                "num_sequences": count,
                "sequence_length": calibration.sequence_length,
                "estimated": calibration.source in TOKENS_PER_ROW,
            }
            for name, count in sequences.items()
        },
        "tasks_per_candidate": batches,
        "flops": flops,
        "dtype": dtype,
        "peak_bytes_per_evaluator": peak_bytes,
        "memory": serving(accounting, config.memory.load(calibration.sequence_length)),
        **({"statistics": statistics} if statistics else {}),
        **planned_recovery(accounting, config.recovery),
        "num_evaluators": num_evaluators,
    }
    return SearchReport(report, accounting, hidden_size, block_flops)


def _evaluators(
    config: PruneConfig, accounting: Accounting, hidden_size: int
) -> tuple[str, int, int]:
    """Type and bytes of an evaluator, and how many there are: as many as a search would start on
    this machine, unless they are given; one of a cluster, which is not asked.

    Raises:
        InputError: more threads for each than this machine has cores.
    """
    calibration, cluster = config.calibration, config.cluster
    machine = LocalMachine.detect(num_gpus=cluster.num_gpus)
    if cluster.kind != "ray":
        machine.require_cores(cluster.num_cpus_per_evaluator)
    gpus = machine.gpus_per_evaluator(cluster.num_gpus_per_evaluator)
    dtype = resolve_dtype(config.model.dtype, on_gpu=gpus > 0)
    needed = shape_evaluator_bytes(
        accounting,
        dtype,
        batch_tokens=calibration.batch_size * calibration.sequence_length,
        hidden_size=hidden_size,
        compensated=config.search.compensation != "none",
        by_divergence=STRATEGIES[config.search.strategy].by_divergence,
    )
    count = cluster.num_evaluators
    if count is None and cluster.kind == "local":
        count = machine.num_evaluators(
            num_gpus=gpus, num_cpus=cluster.num_cpus_per_evaluator, memory_bytes=needed
        )
    return dtype, needed, count or 1
