"""Sizes for all blocks at once: each block is measured at a few sizes around a shape, and an
integer program picks one size for each, so that the summed sensitivity is least and every cost
stays below its limit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pruning.costs.accounting import Accounting
from pruning.costs.memory import shown_bytes
from pruning.costs.target import Target
from pruning.errors import InputError
from pruning.shape import UNITS, ModelShape, Resize, Unit

Block = tuple[int, Unit]
"""A block by its layer and the field of `LayerShape` that holds its size."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What a shape may cost at most. A cost is a sum over blocks.

    Args:
        name: as the user called it, for messages: `search.target_ratio`.
        cost: of a shape, any unit.
        most: in that unit.
        dense: cost of the dense model, where the limit was given as the share that goes.
        in_bytes: the unit is bytes.
    """

    name: str
    cost: Callable[[ModelShape], float]
    most: float
    dense: float | None = None
    in_bytes: bool = False

    @classmethod
    def of_target(cls, target: Target) -> Limit:
        """At least what is asked for goes."""
        if isinstance(target.given, str):
            return cls(target.name, target.cost.of, target.most, in_bytes=True)
        return cls(target.name, target.cost.of, target.most, target.cost.dense)

    @classmethod
    def of_parameters(cls, accounting: Accounting, ratio: float) -> Limit:
        """At least that share of all parameters goes."""
        dense = accounting.num_dense_parameters
        return cls("search.target_ratio", accounting.num_parameters, (1 - ratio) * dense, dense)

    def as_given(self, cost: float) -> str:
        """A cost as the limit was given: of targets the share of the dense model that is gone."""
        if self.in_bytes:
            return shown_bytes(cost)
        return f"{cost if self.dense is None else 1 - cost / self.dense:.4g}"

    @property
    def easier(self) -> str:
        """What to do where it is out of reach."""
        return "allow more" if self.dense is None else "lower the target"

    def is_kept(self, cost: float) -> bool:
        """Whether a shape may cost that much, sums of floats aside."""
        return cost <= self.most + 1e-9 * abs(self.most)


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
    table: Sensitivities,
    limits: Sequence[Limit],
    *,
    max_moves: int | None = None,
    alike: Unit | None = None,
) -> Solution:
    """The sizes with the least summed change that keep every limit: proven optimal, by an integer
    program. Among equals the solver decides, always alike for the same table.

    Args:
        max_moves: blocks that may differ from the base; None: all. Changes add up near the base.
        alike: blocks of the table that must all have one size.

    Raises:
        InputError: no choice of the measured sizes keeps a limit.
    """
    base = table.base
    choices = [
        (block, size, change)
        for block, sizes in table.changes.items()
        for size, change in sorted(sizes.items())
        if math.isfinite(change)
    ]
    for limit in limits:
        reached = lowest_cost(table, limit)
        if not limit.is_kept(reached):
            raise InputError(
                f"{limit.name}: {limit.as_given(limit.most)} is out of reach; the smallest "
                f"measured size of every block comes to {limit.as_given(reached)}; allow more, or "
                "measure smaller sizes"
            )
    moves = len(table.changes) if max_moves is None else max_moves
    taken = _solved(base, choices, limits, moves, alike)
    if taken is None:
        raise InputError(
            f"search: no choice of at most {moves} changed blocks keeps all of "
            f"{', '.join(limit.name for limit in limits)} together; allow more, or lower the target"
        )
    shape, predicted = base, 0.0
    for block, size, change in taken:
        shape, predicted = resized(shape, block, size), predicted + change
    return Solution(shape, predicted)


def lowest_cost(table: Sensitivities, limit: Limit) -> float:
    """What the smallest sizes of a table come to, those that have no finite score aside."""
    base, total = table.base, limit.cost(table.base)
    for block, sizes in table.changes.items():
        finite = [size for size, change in sizes.items() if math.isfinite(change)]
        costs = [limit.cost(resized(base, block, size)) for size in finite]
        total += min(costs, default=math.inf) - limit.cost(base)
    return total


Choice = tuple[Block, int, float]
"""A block, one size of it, and the change that this makes."""


def _solved(
    base: ModelShape,
    choices: Sequence[Choice],
    limits: Sequence[Limit],
    moves: int,
    alike: Unit | None,
) -> list[Choice] | None:
    """One choice for each block, by an integer program; None: there is no solution."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # a plan does without
    from scipy.sparse import csr_array

    extra = np.array(
        [
            [limit.cost(resized(base, block, size)) - limit.cost(base) for limit in limits]
            for block, size, _ in choices
        ],
        dtype=np.float64,
    )
    room = np.array([limit.most - limit.cost(base) for limit in limits])
    scale = np.maximum(np.abs(extra).max(axis=0), 1e-12)
    blocks = list(dict.fromkeys(block for block, _, _ in choices))
    one_each = np.array([[block == each for block, _, _ in choices] for each in blocks])
    moved = np.array([[size != size_of(base, block) for block, size, _ in choices]])
    same = _same_size(choices, alike)
    rows = np.concatenate([one_each, extra.T / scale[:, None], moved, same]).astype(np.float64)
    open_below = np.full(len(limits) + 1, -np.inf)
    ones, zeros = np.ones(len(blocks)), np.zeros(len(same))
    changes = np.array([change for _, _, change in choices])
    result = milp(
        # The solver stops within 1e-6 of the optimum, in whatever unit it is given.
        changes * (1e3 / max(float(np.abs(changes).max()), 1e-300)),
        constraints=LinearConstraint(
            csr_array(rows),
            np.concatenate([ones, open_below, zeros]),
            np.concatenate([ones, room / scale, [moves], zeros]),
        ),
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        return None
    return [choice for choice, chosen in zip(choices, result.x, strict=True) if chosen > 0.5]


def _same_size(
    choices: Sequence[Choice], alike: Unit | None
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """A row for each size and each two neighbouring blocks of the unit: both have it, or none."""
    blocks = list(dict.fromkeys(block for block, _, _ in choices if block[1] == alike))
    sizes = sorted({size for block, size, _ in choices if block[1] == alike})
    rows = [
        [(block == first) - (block == second) if each == size else 0 for block, each, _ in choices]
        for size in sizes
        for first, second in itertools.pairwise(blocks)
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(choices))
