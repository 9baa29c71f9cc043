"""The same share of every layer's MLP channels, nothing scored: the control of every comparison,
and with one width for all layers a checkpoint that every engine opens.
"""

from __future__ import annotations

from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.shape import LayerShape, ModelShape


def uniform_shape(
    accounting: Accounting,
    *,
    target_ratio: float,
    group: int,
    whole_ends: bool = True,
    one_width: bool = False,
) -> ModelShape:
    """The most even shape whose ratio is at least the target.

    All widths are `group` channels below the dense one, or a multiple of that; where one step for
    all overshoots, evenly spaced layers keep one group more.

    Args:
        target_ratio: removed / all parameters, above 0 and below 1.
        group: MLP channels that go at a time.
        whole_ends: leave the first and the last layer whole, which matter most.
        one_width: no layer keeps a group more than another.

    Raises:
        InputError: the MLPs do not hold that much.
    """
    num_layers, channels = accounting.geometry.num_layers, accounting.geometry.mlp_channels
    whole = (0, num_layers - 1) if whole_ends and num_layers > 2 else ()
    narrowed = [layer for layer in range(num_layers) if layer not in whole]
    for width in range(channels - group, 0, -group):
        shape = _with_widths(accounting, dict.fromkeys(narrowed, width))
        if accounting.ratio(shape) >= target_ratio:
            return shape if one_width else _evened(accounting, narrowed, width, group, target_ratio)
    lowest = channels % group or group
    most = accounting.ratio(_with_widths(accounting, dict.fromkeys(narrowed, lowest)))
    raise InputError(
        f"search.target_ratio: {target_ratio:g}; MLPs of {lowest} channels in "
        f"{len(narrowed)} of {num_layers} layers come to {most:.4f}, and search=uniform leaves "
        "attention whole; lower the target, or use smaller groups"
    )


def _evened(
    accounting: Accounting, narrowed: list[int], width: int, group: int, target_ratio: float
) -> ModelShape:
    """As many evenly spaced layers as the target allows keep one group more."""
    for count in range(len(narrowed), 0, -1):
        spaced = [narrowed[position * len(narrowed) // count] for position in range(count)]
        widths = dict.fromkeys(narrowed, width) | dict.fromkeys(spaced, width + group)
        shape = _with_widths(accounting, widths)
        if accounting.ratio(shape) >= target_ratio:
            return shape
    return _with_widths(accounting, dict.fromkeys(narrowed, width))


def _with_widths(accounting: Accounting, widths: dict[int, int]) -> ModelShape:
    return ModelShape(
        tuple(
            LayerShape(layer.kv_heads, widths.get(index, layer.mlp_channels))
            for index, layer in enumerate(accounting.dense.layers)
        )
    )
