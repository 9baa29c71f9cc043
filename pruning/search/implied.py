"""What a pruned shape says of the search that led to it: steps and evaluations of each stage, and
the targets that end there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.search.plan import Range
from pruning.search.stages import StageName
from pruning.shape import LayerShape, ModelShape


@dataclass(frozen=True, slots=True)
class ImpliedStage:
    """One stage of a search that ended in a given shape.

    Args:
        steps: removals.
        evaluations: candidates scored; a range where layers ran out of groups, since the shape does
            not say when.
        ratio: at the end of the stage.
        ratio_before: one step earlier; where that step may have been an attention or an MLP block,
            as if it had been the larger one.
    """

    name: StageName
    steps: int
    evaluations: Range
    ratio: float
    ratio_before: float


def implied_search(
    accounting: Accounting, shape: ModelShape, *, mlp_group: int, head_group: int
) -> tuple[ImpliedStage, ...]:
    """The three stages that lead to `shape`: whole blocks first, then MLP channels, then heads.

    Args:
        mlp_group: MLP channels that go at a time.
        head_group: KV heads that go at a time.

    Raises:
        InputError: no such search ends there, since a width is not the dense one less whole groups.
    """
    dense = accounting.dense.layers[0]
    mlp_widths = [layer.mlp_channels for layer in shape.layers if layer.mlp_channels]
    kv_heads = [layer.kv_heads for layer in shape.layers if layer.kv_heads]
    mlp_steps = _groups("MLP channels", mlp_widths, dense.mlp_channels, mlp_group)
    head_steps = _groups("KV heads", kv_heads, dense.kv_heads, head_group)
    channels = ModelShape(
        tuple(
            LayerShape(dense.kv_heads if layer.kv_heads else 0, layer.mlp_channels)
            for layer in shape.layers
        )
    )
    return (
        _block_stage(accounting, shape),
        _stage(
            accounting,
            "mlp_channels",
            sum(mlp_steps),
            _candidates(mlp_steps, (dense.mlp_channels - 1) // mlp_group),
            channels,
            [LayerShape(dense.kv_heads, dense.mlp_channels - mlp_group)] if any(mlp_steps) else [],
        ),
        _stage(
            accounting,
            "attention_heads",
            sum(head_steps),
            _candidates(head_steps, (dense.kv_heads - 1) // head_group),
            shape,
            [LayerShape(dense.kv_heads - head_group, dense.mlp_channels)]
            if any(head_steps)
            else [],
        ),
    )


def target_range(
    stages: Sequence[ImpliedStage], distribution: Sequence[float]
) -> tuple[float, float] | None:
    """Target ratios above the first and up to the second number end every stage where it ended;
    None if there are none.
    """
    low, high, share = 0.0, 1.0, 0.0
    for stage, part in zip(stages, distribution, strict=True):
        share += part / math.fsum(distribution)
        low = max(low, stage.ratio_before / share if stage.steps and share else 0.0)
        high = min(high, stage.ratio / share if share else 1.0)
    return (low, high) if low < high else None


def _block_stage(accounting: Accounting, shape: ModelShape) -> ImpliedStage:
    dense, num_layers = accounting.dense.layers[0], len(shape.layers)
    num_attention = sum(not layer.kv_heads for layer in shape.layers)
    num_mlp = sum(not layer.mlp_channels for layer in shape.layers)
    blocks = ModelShape(
        tuple(
            LayerShape(
                dense.kv_heads if layer.kv_heads else 0,
                dense.mlp_channels if layer.mlp_channels else 0,
            )
            for layer in shape.layers
        )
    )
    last_steps = [LayerShape(0, dense.mlp_channels)] if num_attention else []
    last_steps += [LayerShape(dense.kv_heads, 0)] if num_mlp else []
    steps = num_attention + num_mlp
    evaluations = sum(2 * num_layers - step for step in range(steps))
    return _stage(accounting, "block", steps, Range(evaluations, evaluations), blocks, last_steps)


def _stage(
    accounting: Accounting,
    name: StageName,
    steps: int,
    evaluations: Range,
    end: ModelShape,
    last_steps: Sequence[LayerShape],
) -> ImpliedStage:
    """`last_steps`: what can remain of a dense layer after the last step."""
    ratio = accounting.ratio(end)
    largest = max(
        (
            accounting.ratio(ModelShape((layer, *accounting.dense.layers[1:])))
            for layer in last_steps
        ),
        default=0.0,
    )
    return ImpliedStage(name, steps, evaluations, ratio, ratio - largest)


def _groups(what: str, widths: Sequence[int], full: int, group: int) -> list[int]:
    """Groups that each layer lost."""
    odd = [width for width in widths if (full - width) % group]
    if odd:
        raise InputError(
            f"shape: a layer keeps {odd[0]} {what}, which is not {full} less whole groups of "
            f"{group}"
        )
    return [(full - width) // group for width in widths]


def _candidates(steps: Sequence[int], most: int) -> Range:
    """A layer is a candidate until it has lost `most` groups: fewest candidates where layers that
    did were first, most where they were last.
    """
    total, used_up = sum(steps), sum(1 for count in steps if count == most and most)
    everything = total * len(steps)
    return Range(
        everything - sum(total - most * (index + 1) for index in range(used_up)),
        everything - sum(range(used_up)),
    )


def whole_blocks(accounting: Accounting, ratio: float, *, layers: bool) -> tuple[float, int, int]:
    """The ratio nearest to `ratio` that removing whole blocks alone can come to, and how many
    attention and MLP blocks that takes.

    Args:
        layers: the two blocks of a layer go together.
    """
    dense, num_layers = accounting.dense.layers[0], accounting.geometry.num_layers
    attention, mlp = (
        accounting.ratio(ModelShape((layer, *accounting.dense.layers[1:])))
        for layer in (LayerShape(0, dense.mlp_channels), LayerShape(dense.kv_heads, 0))
    )
    counts = [
        (a, m) for a in range(num_layers + 1) for m in range(num_layers + 1) if a == m or not layers
    ]
    best = min(counts, key=lambda pair: abs(pair[0] * attention + pair[1] * mlp - ratio))
    return best[0] * attention + best[1] * mlp, *best
