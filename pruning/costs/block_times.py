"""What one block takes, from the times of whole models that differ in nothing else.

A block without the other one of its layer would be timed with what stands in its place: where an
attention was, zeros are written into the cache. So every size of a block is timed in layers whose
other block is whole, several of them one after another in a real model. What a model takes beside
its layers is told from what they take by a model of one layer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, TypeVar

from pruning.costs.accounting import Accounting
from pruning.costs.latency import PHASES, BlockTimes, Phase, PhaseTimes, Seconds
from pruning.costs.speed import SpeedSettings
from pruning.errors import InputError
from pruning.models.dtypes import NUM_BYTES
from pruning.models.geometry import Geometry
from pruning.shape import LayerShape, ModelShape

if TYPE_CHECKING:  # plans need the sizes alone, and are quick
    from transformers import PreTrainedModel

_Name = TypeVar("_Name")

MIN_DEPTH = 8
"""Layers of a model that is timed, where the whole has as many: what is launched late hides behind
the layers before, and many models fit into memory together.
"""

_CHAIN_BYTES = 256 * 2**20
"""More than the caches of most devices: weights of fewer would stay there from run to run, as those
of a whole model do not.
"""


def depth_of(accounting: Accounting, dtype: str) -> int:
    """Layers of the models that are timed of such a model, in that type: enough that the weights of
    the smaller kind of block do not stay in a cache.
    """
    geometry, [layer, *_] = accounting.geometry, accounting.dense.layers
    alone = [replace(layer, mlp_channels=0), replace(layer, kv_heads=0)]
    weights = NUM_BYTES[dtype] * min(
        accounting.num_block_parameters(ModelShape((each,) * geometry.num_layers)) for each in alone
    )
    enough = -(-_CHAIN_BYTES * geometry.num_layers // max(1, weights))
    return min(geometry.num_layers, max(MIN_DEPTH, enough))


@dataclass(frozen=True, slots=True)
class Levels:
    """Sizes that are measured, ascending, of which 0 and the dense model's are always two.

    Args:
        depth: layers of a model that is timed, where the whole has as many.
    """

    kv_heads: tuple[int, ...]
    mlp_channels: tuple[int, ...]
    depth: int = MIN_DEPTH

    @classmethod
    def of(
        cls,
        geometry: Geometry,
        *,
        width_step: int | None = None,
        widths: Sequence[int] = (),
        depth: int = MIN_DEPTH,
    ) -> Self:
        """Of a model: about eight sizes of an attention, and the widths that are asked for.

        Args:
            width_step: channels between two widths; None: about an eighth of the MLP, rounded up
                to a multiple of 64 where it is more than that.
            widths: all of them, instead of a step.

        Raises:
            InputError: the MLP is not as wide as one of them.
        """
        whole = geometry.mlp_channels
        if too_wide := [width for width in widths if width > whole]:
            raise InputError(
                f"widths: {', '.join(map(str, too_wide))}; the MLPs have {whole} channels"
            )
        eighth = -(-whole // 8)
        step = width_step or (eighth if eighth < 64 else -(-eighth // 64) * 64)
        heads = range(0, geometry.kv_heads, -(-geometry.kv_heads // 8))
        return cls(
            (*heads, geometry.kv_heads),
            tuple(sorted({0, whole, *(widths or range(0, whole, step))})),
            depth,
        )

    @property
    def num_models(self) -> int:
        """Of `stacks_of`."""
        return len(self.kv_heads) + len(self.mlp_channels)


@dataclass(frozen=True, slots=True)
class Stack:
    """A model of so many layers that are all alike."""

    layer: LayerShape
    depth: int

    def shape(self, num_layers: int) -> ModelShape:
        """The same as a shape of a model with `num_layers`, of which the others are gone."""
        gone = (LayerShape(0, 0),) * (num_layers - self.depth)
        return ModelShape((self.layer,) * self.depth + gone)


def stacks_of(geometry: Geometry, levels: Levels) -> list[Stack]:
    """The models that tell all levels apart: each size of a block beside a whole one of the other
    kind, and the whole layer once more alone.

    Raises:
        ValueError: the model has one layer, so that a layer cannot be told from the rest.
    """
    if geometry.num_layers < 2:
        raise ValueError("a model of one layer has nothing to tell a layer from the rest by")
    depth = min(levels.depth, geometry.num_layers)
    whole = geometry.dense.layers[0]
    layers = [
        *(LayerShape(heads, whole.mlp_channels) for heads in levels.kv_heads),
        *(LayerShape(whole.kv_heads, channels) for channels in levels.mlp_channels),
    ]
    return [*(Stack(layer, depth) for layer in dict.fromkeys(layers)), Stack(whole, 1)]


def time_blocks(
    models: Mapping[Stack, PreTrainedModel],
    settings: SpeedSettings,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> BlockTimes:
    """Times the models in turns and takes their blocks apart.

    Args:
        models: of `stacks_of`.

    Raises:
        ScoringError: a model returns no KV cache.
    """
    return block_times(seconds_of(models, settings, clock=clock))


def seconds_of(
    models: Mapping[_Name, PreTrainedModel],
    settings: SpeedSettings,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[_Name, dict[Phase, list[float]]]:
    """What each model takes in each round, in turns (`timed_runs`).

    Raises:
        ScoringError: a model returns no KV cache.
    """
    from pruning.costs.timed_runs import timed_runs

    return {
        name: {
            "prefill": [run.prefill_s for run in found],
            "decode": [run.decode_s for run in found],
        }
        for name, found in timed_runs(models, settings, clock=clock).items()
    }


def block_times(seconds: Mapping[Stack, Mapping[Phase, Sequence[float]]]) -> BlockTimes:
    """Rest, attentions and MLPs from the seconds of each stack, one a round. Each round is taken
    apart by itself, so that all its times are of one moment.

    With s(k, c) for a layer of k KV heads and c channels, K and C for the whole one: an MLP of c
    channels takes s(K, c) - s(K, 0), an attention of k heads s(k, C) less what the whole MLP takes.
    How slow the machine was in a round is told by the model of whole layers.
    """
    many = whole_stack(seconds)
    one = Stack(many.layer, 1)
    found: dict[Phase, dict[tuple[str, int], Seconds]] = {}
    for phase in PHASES:
        rounds = [
            _blocks({stack: each[phase][number] for stack, each in seconds.items()}, one, many)
            for number in range(len(seconds[one][phase]))
        ]
        speeds = slowness_of(seconds[many][phase])
        found[phase] = {
            part: Seconds.of_rounds([each[part] for each in rounds], speeds) for part in rounds[0]
        }
    parts = {
        part: PhaseTimes(found["prefill"][part], found["decode"][part]) for part in found["prefill"]
    }
    return BlockTimes(
        parts["rest", 0],
        {size: times for (unit, size), times in parts.items() if unit == "kv_heads"},
        {size: times for (unit, size), times in parts.items() if unit == "mlp_channels"},
    )


def _blocks(
    seconds: Mapping[Stack, float], one: Stack, many: Stack
) -> dict[tuple[str, int], float]:
    """Seconds of the rest and of each block by its size, in one phase of one round."""
    whole, depth = many.layer, many.depth
    rest = seconds[one] - (seconds[many] - seconds[one]) / (depth - 1)
    layer = {
        stack.layer: (taken - rest) / depth for stack, taken in seconds.items() if stack != one
    }
    alone = layer[LayerShape(whole.kv_heads, 0)]
    mlp = {
        each.mlp_channels: taken - alone
        for each, taken in layer.items()
        if each.kv_heads == whole.kv_heads
    }
    attention = {
        each.kv_heads: taken - mlp[whole.mlp_channels]
        for each, taken in layer.items()
        if each.mlp_channels == whole.mlp_channels
    }
    return {
        ("rest", 0): rest,
        **{("kv_heads", size): attention[size] for size in sorted(attention)},
        **{("mlp_channels", size): mlp[size] for size in sorted(mlp)},
    }


def whole_stack(stacks: Iterable[Stack]) -> Stack:
    """The chain of whole layers: no other has as large ones."""
    return max(stacks, key=lambda each: (each.layer.kv_heads, each.layer.mlp_channels, each.depth))


def slowness_of(seconds: Sequence[float]) -> list[float]:
    """How slow the machine was in each round, 1 as usual, by what the same model took."""
    usual = statistics.median(seconds)
    return [each / usual for each in seconds]
