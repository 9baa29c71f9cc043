"""Constraints on the sizes that an allocation may take, as data, and what they cost in reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pruning.errors import InputError
from pruning.search.allocation import (
    Block,
    Limit,
    Sensitivities,
    Solution,
    lowest_cost,
    size_of,
    solve,
)
from pruning.search.greedy import is_allowed
from pruning.search.settings import DEPLOYABLE_CHANNELS, ShapeConstraint
from pruning.shape import UNITS, Kind, ModelShape, Removal, Unit

_BLOCKS: Mapping[Unit, str] = {"kv_heads": "attention", "mlp_channels": "MLP"}


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the sizes of a shape must be.

    Args:
        name: as the user called it, for messages: `search.width_multiple=256`.
        allows: whether a block may have a size.
        alike: blocks that must all have one size; None: none.
    """

    name: str
    allows: Callable[[Block, int], bool] = lambda _block, _size: True
    alike: Unit | None = None

    def is_kept(self, shape: ModelShape) -> bool:
        """Whether all blocks of a shape are as this asks."""
        sizes = {
            (layer, unit): size_of(shape, (layer, unit))
            for layer in range(len(shape.layers))
            for unit in UNITS
        }
        widths = {size for (_, unit), size in sizes.items() if unit == self.alike}
        return len(widths) <= 1 and all(self.allows(block, size) for block, size in sizes.items())


def of_shape_constraint(name: ShapeConstraint, num_layers: int) -> list[Constraint]:
    """The shape constraints of every search (`pruning.search.settings`), as rules about sizes."""
    said = f"search.shape_constraint={name}"
    if name == "one_width":
        return [Constraint(said, alike="mlp_channels")]
    if name == "none":
        return []

    def allows(block: Block, size: int) -> bool:
        layer, unit = block
        if unit == "mlp_channels" and size % DEPLOYABLE_CHANNELS:
            return False
        kind: Kind = "attention" if unit == "kv_heads" else "mlp"
        return size > 0 or is_allowed(Removal(kind, layer, 0), num_layers, name)

    return [Constraint(said, allows)]


def width_multiple(multiple: int) -> Constraint:
    """MLP widths are multiples of that many channels; an MLP may be gone."""
    return Constraint(
        f"search.width_multiple={multiple}",
        lambda block, size: block[1] != "mlp_channels" or size % multiple == 0,
    )


def whole_attention(dense: ModelShape) -> Constraint:
    """Every attention keeps all its heads."""
    return Constraint(
        "search.whole_attention=true",
        lambda block, size: block[1] != "kv_heads" or size == size_of(dense, block),
    )


def whole_blocks(dense: ModelShape) -> Constraint:
    """Every block is whole or gone: depth alone changes."""
    return Constraint(
        "search.whole_blocks=true", lambda block, size: size in (0, size_of(dense, block))
    )


def solve_within(
    table: Sensitivities, limits: Sequence[Limit], constraints: Sequence[Constraint]
) -> Solution:
    """As `solve`, over the sizes that every constraint allows; blocks that are not in the table
    have the size of the base.

    Raises:
        InputError: a constraint allows none of the sizes that were measured of a block, or a limit
            is out of reach. It says which constraint keeps it there, and how far sizes go.
    """
    restricted = _restricted(table, constraints)
    problems = [
        _out_of_reach(table, limit, constraints)
        for limit in limits
        if not limit.is_kept(lowest_cost(restricted, limit))
    ]
    if problems:
        raise InputError("\n".join(problems))
    alike = next((each.alike for each in constraints if each.alike), None)
    return solve(restricted, limits, alike=alike)


def _restricted(table: Sensitivities, constraints: Sequence[Constraint]) -> Sensitivities:
    """The table with the allowed sizes alone, for every block of the model."""
    known = _whole(table)
    changes: dict[Block, dict[int, float]] = {}
    for block, sizes in known.items():
        changes[block] = {
            size: change
            for size, change in sizes.items()
            if all(each.allows(block, size) for each in constraints)
        }
        if not changes[block]:
            raise InputError(_nothing_allowed(block, sizes, constraints))
    for constraint in constraints:
        unit = constraint.alike
        alike = [block for block in changes if block[1] == unit]
        common = set.intersection(*(set(changes[block]) for block in alike)) if alike else set()
        if unit and not common:
            raise InputError(_nothing_in_common(changes, alike, constraint))
        for block in alike:
            changes[block] = {size: changes[block][size] for size in sorted(common)}
    return Sensitivities(table.base, changes)


def _whole(table: Sensitivities) -> dict[Block, dict[int, float]]:
    """Finite changes of every block; of those that were not measured, the base alone."""
    found: dict[Block, dict[int, float]] = {}
    for layer in range(len(table.base.layers)):
        for unit in UNITS:
            block: Block = (layer, unit)
            sizes = table.changes.get(block, {size_of(table.base, block): 0.0})
            found[block] = {size: each for size, each in sizes.items() if math.isfinite(each)}
    return found


def _nothing_allowed(
    block: Block, sizes: Mapping[int, float], constraints: Sequence[Constraint]
) -> str:
    alone = [each for each in constraints if not any(each.allows(block, size) for size in sizes)]
    names = [each.name for each in alone or constraints]
    listed = ", ".join(map(str, sorted(sizes)))
    return (
        f"{' and '.join(names)}: the {_BLOCKS[block[1]]} of layer {block[0]} was measured at "
        f"{listed} {block[1].replace('_', ' ').replace('kv', 'KV')}, none of which that allows; "
        "leave it out, or solve from a run that measured others"
    )


def _nothing_in_common(
    changes: Mapping[Block, Mapping[int, float]], alike: Sequence[Block], constraint: Constraint
) -> str:
    first = alike[0]
    other = next(
        (each for each in alike if not set(changes[first]) & set(changes[each])), alike[-1]
    )
    sizes = [", ".join(map(str, sorted(changes[each]))) for each in (first, other)]
    return (
        f"{constraint.name}: no size was measured of the {_BLOCKS[first[1]]} of every layer: "
        f"layer {first[0]} at {sizes[0]}, layer {other[0]} at {sizes[1]}; leave it out, or use "
        "search=uniform, which needs no table"
    )


def _out_of_reach(table: Sensitivities, limit: Limit, constraints: Sequence[Constraint]) -> str:
    """How far the allowed sizes go, and how much further without each constraint that binds."""
    reached = lowest_cost(_restricted(table, constraints), limit)
    without = []
    for each in constraints:
        others = [other for other in constraints if other is not each]
        further = lowest_cost(_restricted(table, others), limit)
        if further < reached:
            without.append(f"{limit.as_given(further)} without {each.name}")
    free = lowest_cost(_restricted(table, ()), limit)
    if len(without) > 1 or (free < reached and not without):
        without.append(f"{limit.as_given(free)} without any constraint")
    bound = f" ({', '.join(without)})" if without else ""
    remedy = (
        "drop a constraint that is named"
        if limit.is_kept(free)
        else "solve from a run whose own target is nearer"
    )
    return (
        f"{limit.name}: {limit.as_given(limit.most)} is out of reach; the smallest sizes that were "
        f"measured come to {limit.as_given(reached)}{bound}; {limit.easier}, or {remedy}"
    )
