"""Blocks that another engine than transformers runs: the models that tell them apart are exported
and timed there, and whole models beside them, for what the table is worth.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.engines import remove_leftovers, runs_in_engine
from pruning.costs.block_times import Levels, block_times, stacks_of
from pruning.costs.engine_speed import EngineRuns, Runs
from pruning.costs.latency import PHASES, BlockTimes, LatencyTable, Phase, PhaseTimes, Seconds
from pruning.costs.speed import SpeedSettings
from pruning.models.checkpoint import Checkpoint
from pruning.models.geometry import Geometry
from pruning.scoring.arithmetic import cpu_name, processor_name
from pruning.shape import ModelShape

log = logging.getLogger(__name__)

_LARGE = 0.1
"""Of an error: what goes by the times of blocks alone, such as a share of a model that is to go, is
of this size.
"""


@dataclass(frozen=True, slots=True)
class EngineBlocks:
    """What an engine measured, as a `LatencyTable` has it."""

    times: BlockTimes
    whole_models: Mapping[str, PhaseTimes]
    arithmetic: Mapping[str, Any]


def few_levels(levels: Levels, *, all_widths: bool) -> Levels:
    """Those of an engine that takes a process and its own cache for each model: attentions whole
    and gone, and of MLPs one width between, unless widths are asked for.
    """
    widths = levels.mlp_channels
    return Levels(
        (0, levels.kv_heads[-1]),
        widths if all_widths else tuple(sorted({0, widths[len(widths) // 2], widths[-1]})),
        levels.depth,
    )


def blocks_in_engine(
    engine: str,
    levels: Levels,
    settings: SpeedSettings,
    *,
    checkpoint: Checkpoint,
    geometry: Geometry,
    tokenizer_gguf: Path | None,
    dtype: str,
    num_threads: int,
    folder: Path,
) -> EngineBlocks:
    """Times them on this machine; see `runs_in_engine`."""
    stacks = {f"blocks-{number}": each for number, each in enumerate(stacks_of(geometry, levels))}
    wholes = {f"whole-{number}": each for number, each in enumerate(whole_shapes(geometry, levels))}
    remove_leftovers(folder)
    runs = runs_in_engine(
        engine,
        {name: stack.shape(geometry.num_layers) for name, stack in stacks.items()} | wholes,
        settings,
        checkpoint=checkpoint,
        tokenizer_gguf=tokenizer_gguf,
        dtype=dtype,
        num_threads=num_threads,
        folder=folder,
    )
    return EngineBlocks(
        block_times({stack: _by_phase(runs.seconds[name]) for name, stack in stacks.items()}),
        _whole_models(
            {shape: _by_phase(runs.seconds[name]) for name, shape in wholes.items()}, geometry.dense
        ),
        _arithmetic(runs, num_threads),
    )


def whole_shapes(geometry: Geometry, levels: Levels) -> tuple[ModelShape, ModelShape]:
    """The dense model, and one whose MLPs have about three quarters of their channels and of whose
    attentions every fourth is gone.
    """
    dense = geometry.dense
    width = min(levels.mlp_channels, key=lambda each: abs(4 * each - 3 * geometry.mlp_channels))
    layers = [
        replace(layer, kv_heads=0 if number % 4 == 1 else layer.kv_heads, mlp_channels=width)
        for number, layer in enumerate(dense.layers)
    ]
    return dense, ModelShape(tuple(layers))


def warn_of_errors(table: LatencyTable) -> None:
    """Says so where whole models took other times than the table predicts."""
    errors = {
        phase: max(
            (table.error(ModelShape.parse(text), phase) for text in table.whole_models), key=abs
        )
        for phase in PHASES
        if table.whole_models
    }
    if any(abs(error) > _LARGE for error in errors.values()):
        log.warning(
            "latency: whole models took other times than the table says, predicted / measured - 1 "
            "is up to %s; measure again on a quiet machine, with more rounds",
            ", ".join(f"{error:+.1%} ({phase})" for phase, error in errors.items()),
        )


def _by_phase(runs: Runs) -> dict[Phase, list[float]]:
    return {phase: [run[number] for run in runs] for number, phase in enumerate(PHASES)}


def _whole_models(
    seconds: Mapping[ModelShape, Mapping[Phase, list[float]]], dense: ModelShape
) -> dict[str, PhaseTimes]:
    """How slow the machine was in a round is told by the dense model."""
    found = {}
    for shape, phases in seconds.items():
        times = []
        for phase in PHASES:
            usual = sorted(seconds[dense][phase])[len(seconds[dense][phase]) // 2]
            speeds = [each / usual for each in seconds[dense][phase]]
            times.append(Seconds.of_rounds(phases[phase], speeds))
        found[shape.text] = PhaseTimes(*times)
    return found


def _arithmetic(runs: EngineRuns, num_threads: int) -> dict[str, Any]:
    on_cpu = runs.device == "cpu"
    return {
        "device": cpu_name() if on_cpu else runs.device,
        "processor": processor_name() if on_cpu else "",
        "num_threads": num_threads,
        "engine": runs.version,
    }
