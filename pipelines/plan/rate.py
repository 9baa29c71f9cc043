"""The rate of an evaluator for a plan: given, that of an earlier search, or measured here."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.cli.launch import freeze_gc
from pipelines.config.plan import PlanConfig
from pipelines.plan.estimate import measured_tflops
from pipelines.plan.report import SearchReport
from pruning.costs.accounting import Accounting
from pruning.costs.memory import shown_bytes
from pruning.errors import first_line
from pruning.models.find import find_checkpoint
from pruning.shape import LayerShape, ModelShape
from workers.cluster.machine import LocalMachine
from workers.evaluators.memory import evaluator_bytes

log = logging.getLogger(__name__)

_GIVE = "give tflops_per_evaluator= or rate_of="


class Rates:
    """Rates as plan.json has them. What several points of a sweep have in common is measured once.

    `source` is `given`, `run` or `measured`; None where there is none, for a `reason` that is said.
    """

    def __init__(self) -> None:
        self._measured: dict[Hashable, dict[str, Any]] = {}

    def of(self, config: PlanConfig, found: SearchReport) -> dict[str, Any]:
        """That of one search.

        Raises:
            InputError: see `measured_tflops`.
        """
        if config.rate_of:
            return {"source": "run", "tflops": measured_tflops(Path(config.rate_of).expanduser())}
        if config.tflops_per_evaluator:
            return {"source": "given", "tflops": config.tflops_per_evaluator}
        if found.report["flops"] is None:
            return _none("FLOPs of this architecture are not counted")
        if config.cluster.kind == "ray":
            return _none(f"a cluster is not asked: {_GIVE}")
        if not config.measure_rate:
            return _none(f"not measured: {_GIVE}")
        model, cluster = config.model, config.cluster
        key = (
            *(model.path, model.revision, found.report["dtype"], _batch(config, found)),
            *(cluster.num_gpus, cluster.num_gpus_per_evaluator, cluster.num_cpus_per_evaluator),
        )
        if key not in self._measured:
            self._measured[key] = _measured(config, found)
        return self._measured[key]


def _none(reason: str) -> dict[str, Any]:
    return {"source": None, "tflops": None, "reason": reason}


def _batch(config: PlanConfig, found: SearchReport) -> tuple[int, int]:
    """Sequences, and tokens of each, that an evaluator scores at a time."""
    block = found.report["calibration"]["block"]
    return min(config.calibration.batch_size, block["num_sequences"]), block["sequence_length"]


def _measured(config: PlanConfig, found: SearchReport) -> dict[str, Any]:
    accounting, dtype = found.accounting, found.report["dtype"]
    batch_size, length = _batch(config, found)
    cluster = config.cluster
    machine = LocalMachine.detect(num_gpus=cluster.num_gpus)
    gpus = min(1, machine.gpus_per_evaluator(cluster.num_gpus_per_evaluator))
    needed = evaluator_bytes(
        _layer_and_head(accounting), dtype, batch_size * length, found.hidden_size, 1
    )
    if not gpus and needed > machine.free_bytes:
        return _none(
            f"a layer takes about {shown_bytes(needed)} of memory, "
            f"{shown_bytes(machine.free_bytes)} are free: {_GIVE}"
        )
    log.info("measuring the rate of an evaluator on one layer, for about five seconds")
    try:
        with freeze_gc():
            from workers.evaluators.rate import measure_rate  # torch and transformers
        model_config = find_checkpoint(
            config.model.path, revision=config.model.revision, config_only=True
        ).config()
        rate = measure_rate(
            model_config,
            accounting,
            dtype,
            num_threads=cluster.num_cpus_per_evaluator,
            num_gpus=gpus,
            batch_size=batch_size,
            sequence_length=length,
        )
    except Exception as error:  # noqa: BLE001 - whatever a model does not like, the plan stands
        return _none(f"a layer cannot be run here ({first_line(error)}): {_GIVE}")
    return {"source": "measured", **asdict(rate)}


def _layer_and_head(accounting: Accounting) -> int:
    """Parameters of a layer, and of the head."""
    num_layers = accounting.geometry.num_layers
    empty = ModelShape((LayerShape(0, 0),) * num_layers)
    layers = accounting.num_dense_parameters - accounting.num_parameters(empty)
    return layers // num_layers + (accounting.head_weights or 0)
