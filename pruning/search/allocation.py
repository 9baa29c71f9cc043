"""Sizes for all blocks at once: each block is measured at a few sizes around a shape, and an
integer program picks one size for each, so that the summed sensitivity is least and every cost
stays below its limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pruning.errors import InputError
from pruning.shape import ModelShape, Resize

Unit = Literal["kv_heads", "mlp_channels"]
Block = tuple[int, Unit]
"""A block by its layer and the field of `LayerShape` that holds its size."""

UNITS: tuple[Unit, ...] = ("kv_heads", "mlp_channels")


@dataclass(frozen=True, slots=True)
class Limit:
    """What a shape may cost at most. A cost is a sum over blocks.

    Args:
        name: as the user called it, for messages: `search.target_ratio`.
        cost: of a shape, any unit.
        most: in that unit.
    """

    name: str
    cost: Callable[[ModelShape], float]
    most: float


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """Score of each block at some sizes, all else as in `base`, less the score of `base` itself.

    Args:
        base: the shape that was measured around.
        changes: by block and size; the size that `base` has is there with 0.
    """

    base: ModelShape
    changes: Mapping[Block, Mapping[int, float]]


@dataclass(frozen=True, slots=True)
class Solution:
    """A shape, and by how much its score differs from that of the base if changes add up."""

    shape: ModelShape
    predicted: float


def size_of(shape: ModelShape, block: Block) -> int:
    """KV heads or MLP channels of one block."""
    layer, unit = block
    return int(getattr(shape.layers[layer], unit))


def resized(shape: ModelShape, block: Block, size: int) -> ModelShape:
    """The shape with another size of one block, smaller or larger."""
    return shape.resized(Resize(*block, size))


def neighbours(
    base: ModelShape,
    dense: ModelShape,
    *,
    channel_steps: Sequence[int],
    head_steps: Sequence[int],
) -> dict[Block, tuple[int, ...]]:
    """Sizes of each block a few steps up and down from `base`, within 0 and the dense size.

    Args:
        channel_steps: added to the width of an MLP, in channels.
        head_steps: added to the KV heads of an attention; empty leaves attentions alone.
    """
    found: dict[Block, tuple[int, ...]] = {}
    for layer in range(len(base.layers)):
        for unit, steps in zip(UNITS, (head_steps, channel_steps), strict=True):
            block: Block = (layer, unit)
            most, now = size_of(dense, block), size_of(base, block)
            sizes = {min(most, max(0, now + step)) for step in steps} - {now}
            if sizes:
                found[block] = tuple(sorted(sizes))
    return found


def solve(
    table: Sensitivities, limits: Sequence[Limit], *, max_moves: int | None = None
) -> Solution:
    """The sizes with the least summed change that keep every limit: proven optimal, by an integer
    program. Among equals the solver decides, always alike for the same table.

    Args:
        max_moves: blocks that may differ from the base; None: all. Changes add up near the base.

    Raises:
        InputError: no choice of the measured sizes keeps a limit.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # a plan does without
    from scipy.sparse import lil_array

    base = table.base
    choices = [
        (block, size, change)
        for block, sizes in table.changes.items()
        for size, change in sorted(sizes.items())
        if math.isfinite(change)
    ]
    extra = np.array(
        [
            [limit.cost(resized(base, block, size)) - limit.cost(base) for limit in limits]
            for block, size, _ in choices
        ],
        dtype=np.float64,
    )
    room = np.array([limit.most - limit.cost(base) for limit in limits])
    _require_feasible(limits, choices, extra, room)
    blocks = list(table.changes)
    rows = lil_array((len(blocks) + len(limits) + 1, len(choices)))
    for column, (block, size, _) in enumerate(choices):
        rows[blocks.index(block), column] = 1
        rows[len(blocks) + len(limits), column] = float(size != size_of(base, block))
    scale = np.maximum(np.abs(extra).max(axis=0), 1e-12)
    for index in range(len(limits)):
        rows[[len(blocks) + index], :] = extra[:, index] / scale[index]
    lowest = np.concatenate([np.ones(len(blocks)), np.full(len(limits) + 1, -np.inf)])
    moves = len(blocks) if max_moves is None else max_moves
    highest = np.concatenate([np.ones(len(blocks)), room / scale, [moves]])
    result = milp(
        np.array([change for _, _, change in choices]),
        constraints=LinearConstraint(rows.tocsr(), lowest, highest),
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise InputError(
            f"search: no choice of at most {moves} changed blocks keeps all of "
            f"{', '.join(limit.name for limit in limits)} together; allow more, or lower the target"
        )
    shape, predicted = base, 0.0
    for (block, size, change), chosen in zip(choices, result.x, strict=True):
        if chosen > 0.5:
            shape, predicted = resized(shape, block, size), predicted + change
    return Solution(shape, predicted)


def _require_feasible(
    limits: Sequence[Limit],
    choices: Sequence[tuple[Block, int, float]],
    extra: np.ndarray[tuple[int, int], np.dtype[np.float64]],
    room: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> None:
    """Says which limit alone is out of reach, and how far the measured sizes go."""
    for index, limit in enumerate(limits):
        least: dict[Block, float] = {}
        for (block, _, _), cost in zip(choices, extra[:, index], strict=True):
            least[block] = min(cost, least.get(block, math.inf))
        if sum(least.values()) > room[index] + 1e-9 * abs(limit.most):
            reached = limit.most - room[index] + sum(least.values())
            raise InputError(
                f"{limit.name}: {limit.most:g} is out of reach; the smallest measured size of "
                f"every block comes to {reached:g}; allow more, or measure smaller sizes"
            )
