"""Blocks that another engine than transformers runs: the models that tell them apart are exported
and timed there, and whole models beside them, for what the table is worth.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.engines import EngineModel, remove_leftovers, runs_in_engine
from pruning.costs.block_times import (
    Levels,
    Stack,
    block_times,
    slowness_of,
    stacks_of,
    whole_stack,
)
from pruning.costs.engine_speed import EngineRuns, Runs
from pruning.costs.latency import PHASES, BlockTimes, LatencyTable, Phase, PhaseTimes, Seconds
from pruning.costs.speed import SpeedSettings
from pruning.models.geometry import Geometry
from pruning.scoring.arithmetic import cpu_name, processor_name
from pruning.shape import ModelShape

log = logging.getLogger(__name__)

_AGAIN = "again"
_LARGE = 0.1
"""Of an error: as much as some targets take from the time of a model."""


@dataclass(frozen=True, slots=True)
class EngineBlocks:
    """What an engine measured, as a `LatencyTable` has it."""

    times: BlockTimes
    whole_models: Mapping[str, PhaseTimes]
    arithmetic: Mapping[str, Any]


def few_levels(levels: Levels, *, all_widths: bool) -> Levels:
    """Those of vLLM, which takes a process and its own cache for each model: attentions whole, gone
    and of one KV head, and of MLPs one width between, unless widths are asked for.
    """
    widths, heads = levels.mlp_channels, levels.kv_heads[-1]
    return Levels(
        tuple(sorted({0, 1, heads})),
        widths if all_widths else tuple(sorted({0, widths[len(widths) // 2], widths[-1]})),
        levels.depth,
    )


@dataclass(frozen=True, slots=True)
class EngineModels:
    """The models of a measurement: those that tell blocks apart, and whole ones.

    Args:
        stacks: by name.
        wholes: by name; without those that a stack is.
    """

    geometry: Geometry
    stacks: Mapping[str, Stack]
    wholes: Mapping[str, ModelShape]

    @classmethod
    def of(cls, geometry: Geometry, levels: Levels) -> EngineModels:
        stacks = {f"blocks-{n}": each for n, each in enumerate(stacks_of(geometry, levels))}
        known = {stack.shape(geometry.num_layers) for stack in stacks.values()}
        wholes = [shape for shape in whole_shapes(geometry) if shape not in known]
        return cls(geometry, stacks, {f"whole-{n}": each for n, each in enumerate(wholes)})

    @property
    def shapes(self) -> dict[str, ModelShape]:
        """What is exported of each, in that order; at the end the first once more, as a control."""
        stacks = {name: _exported(stack, self.geometry) for name, stack in self.stacks.items()}
        return stacks | dict(self.wholes) | {_AGAIN: next(iter(stacks.values()))}


def _exported(stack: Stack, geometry: Geometry) -> ModelShape:
    """A stack whose attentions are gone gets one back, in its first layer: where that has none,
    both formats write one that does nothing, which takes time that no other layer takes.
    """
    layers = stack.shape(geometry.num_layers).layers
    if stack.layer.kv_heads == 0:
        layers = (replace(stack.layer, kv_heads=geometry.kv_heads), *layers[1:])
    return ModelShape(layers)


def blocks_in_engine(
    engine: str,
    model: EngineModel,
    models: EngineModels,
    settings: SpeedSettings,
    *,
    folder: Path,
) -> EngineBlocks:
    """Times them on this machine; see `runs_in_engine`. Blocks are those of free sizes: vLLM runs
    them as DeciLM, which has all query heads where KV heads are gone.
    """
    remove_leftovers(folder)
    runs = runs_in_engine(
        engine,
        model,
        models.shapes,
        settings,
        folder=folder,
        as_decilm=[*models.stacks, _AGAIN],
    )
    first = next(iter(models.stacks))
    _warn_of_places(_by_phase(runs.seconds[first]), _by_phase(runs.seconds[_AGAIN]))
    seconds = {stack: _by_phase(runs.seconds[name]) for name, stack in models.stacks.items()}
    whole = whole_stack(seconds)
    for stack, taken in seconds.items():
        if stack.layer.kv_heads == 0:
            _take_back(taken, seconds[whole], stack.depth)
    slowness = {phase: slowness_of(seconds[whole][phase]) for phase in PHASES}
    return EngineBlocks(
        block_times(seconds),
        {
            shape.text: _times(_by_phase(runs.seconds[name]), slowness)
            for name, shape in models.wholes.items()
        },
        _arithmetic(runs, model.num_threads),
    )


def _warn_of_places(
    first: Mapping[Phase, Sequence[float]], again: Mapping[Phase, Sequence[float]]
) -> None:
    """Says so where the same model takes another time when it is written once more: where weights
    lie in memory then decides, and no number of rounds tells that from their sizes.
    """
    apart = {
        phase: statistics.median(first[phase]) / statistics.median(again[phase]) - 1
        for phase in PHASES
    }
    if any(abs(each) > _LARGE for each in apart.values()):
        log.warning(
            "latency: a model that was written twice takes another time each (%s): where it lies "
            "in memory decides, here or for any other size; do not trust differences of that size",
            ", ".join(f"{each:+.1%} {phase}" for phase, each in apart.items()),
        )


def _times(
    seconds: Mapping[Phase, Sequence[float]], slowness: Mapping[Phase, Sequence[float]]
) -> PhaseTimes:
    return PhaseTimes(*(Seconds.of_rounds(seconds[phase], slowness[phase]) for phase in PHASES))


def _take_back(
    seconds: dict[Phase, list[float]], whole: Mapping[Phase, Sequence[float]], depth: int
) -> None:
    """Times of `_exported` become those of the stack itself: one of its layers was a whole one, and
    the others say what that takes less without attention.
    """
    for phase in PHASES:
        seconds[phase] = [
            dense + (taken - dense) * depth / (depth - 1)
            for taken, dense in zip(seconds[phase], whole[phase], strict=True)
        ]


def whole_shapes(geometry: Geometry) -> tuple[ModelShape, ModelShape]:
    """The dense model, and one whose MLPs have three quarters of their channels, in multiples of 64
    where they are that wide, and of whose attentions every fourth is gone.
    """
    dense, width = geometry.dense, geometry.mlp_channels * 3 // 4
    width -= width % 64 if width >= 64 else 0
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
            "is up to %s; where that is not noise, measure what a search finds",
            ", ".join(f"{error:+.1%} ({phase})" for phase, error in errors.items()),
        )


def _by_phase(runs: Runs) -> dict[Phase, list[float]]:
    return {phase: [run[number] for run in runs] for number, phase in enumerate(PHASES)}


def _arithmetic(runs: EngineRuns, num_threads: int) -> dict[str, Any]:
    on_cpu = runs.device == "cpu"
    return {
        "device": cpu_name() if on_cpu else runs.device,
        "processor": processor_name() if on_cpu else "",
        "num_threads": num_threads,
        "engine": runs.version,
    }
