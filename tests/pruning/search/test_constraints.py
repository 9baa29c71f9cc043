"""Solutions under constraints: optimal by brute force on tables of any kind."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.costs.target import CostName, Target, costs_of
from pruning.errors import InputError
from pruning.search.allocation import (
    Block,
    Limit,
    Sensitivities,
    resized,
    size_of,
    solve,
)
from pruning.search.constraints import (
    solve_within,
)
from pruning.shape import UNITS, ModelShape
from tests.pruning.search.constraint_cases import ACCOUNTING, BASE, CONSTRAINTS

COSTS = costs_of(ACCOUNTING, context_length=32)


def keeps(name: str, shape: ModelShape) -> bool:
    """The same rules, of whole shapes."""
    widths = [layer.mlp_channels for layer in shape.layers]
    heads = [layer.kv_heads for layer in shape.layers]
    return {
        "none": True,
        "one width": len(set(widths)) == 1,
        "multiples of 16": all(width % 16 == 0 for width in widths),
        "attention whole": heads == [3, 3, 3],
        "depth only": set(widths) <= {0, 48} and set(heads) <= {0, 3},
        "two": len(set(widths)) == 1 and widths[0] % 16 == 0,
    }[name]


@st.composite
def tables(draw: st.DrawFn) -> Sensitivities:
    """All sizes of each block, or some, or none besides that of the base; of some blocks scores
    that are not finite.
    """
    changes: dict[Block, dict[int, float]] = {}
    full = draw(st.booleans())
    for layer in range(3):
        for unit, sizes in zip(UNITS, ((0, 1, 3), (0, 16, 32, 48)), strict=True):
            block: Block = (layer, unit)
            some = st.lists(st.sampled_from(sizes), unique=True, max_size=3)
            chosen = [size for size in sizes if full] or draw(some)
            score = st.floats(-2, 5)
            if not full:
                score = st.one_of(score, st.just(math.nan))
            if chosen:
                measured = {size: draw(score) for size in chosen}
                changes[block] = measured | {size_of(BASE, block): 0.0}
    return Sensitivities(BASE, changes)


def best_by_trying(table: Sensitivities, limits: list[Limit], name: str) -> float:
    """Over every choice of measured sizes; infinite where none will do."""
    blocks, least = list(table.changes), math.inf
    for sizes in itertools.product(*(table.changes[block] for block in blocks)):
        total = sum(table.changes[block][size] for block, size in zip(blocks, sizes, strict=True))
        shape = table.base
        for block, size in zip(blocks, sizes, strict=True):
            shape = resized(shape, block, size)
        if (
            total < least
            and keeps(name, shape)
            and all(limit.cost(shape) <= limit.most for limit in limits)
        ):
            least = total
    return least


@given(
    table=tables(),
    name=st.sampled_from(sorted(CONSTRAINTS)),
    targets=st.dictionaries(
        st.sampled_from(sorted(COSTS)), st.sampled_from([0.05, 0.2, 0.3, 0.45]), min_size=1
    ),
)
@settings(max_examples=100, deadline=None)
def test_solutions_are_optimal_and_refusals_are_right(
    table: Sensitivities, name: str, targets: dict[CostName, float]
) -> None:
    limits = [Limit.of_target(Target(cost, COSTS[cost], ratio)) for cost, ratio in targets.items()]
    best = best_by_trying(table, limits, name)
    try:
        found = solve_within(table, limits, CONSTRAINTS[name])
    except InputError:
        assert best == math.inf
        return
    assert found.predicted == pytest.approx(best, abs=1e-8)
    assert keeps(name, found.shape)
    assert all(COSTS[cost].ratio(found.shape) >= ratio for cost, ratio in targets.items())


@pytest.mark.parametrize("seed", range(4))
def test_the_unit_of_the_changes_does_not_matter(seed: int) -> None:
    """The solver's own tolerance is 1e-6, of whatever it is given: KL of a large model is small."""
    draw = np.random.Generator(np.random.Philox(seed))
    base = ModelShape.parse("3x32*14")
    spread = {24: (0.2, 1.0), 16: (1.0, 2.5), 40: (-0.5, -0.1)}
    changes: dict[Block, dict[int, float]] = {
        (layer, "mlp_channels"): {size: float(draw.uniform(*ends)) for size, ends in spread.items()}
        | {32: 0.0}
        for layer in range(14)
    }
    small = {
        block: {size: 1e-6 * change for size, change in sizes.items()}
        for block, sizes in changes.items()
    }

    def cost(shape: ModelShape) -> float:
        return sum(x.mlp_channels * (7 + index % 5) for index, x in enumerate(shape.layers))

    limit = Limit("cost", cost, 0.87 * 32 * 9 * 14)
    whole, tiny = (solve(Sensitivities(base, each), [limit]) for each in (changes, small))
    assert tiny.shape == whole.shape
    assert tiny.predicted == pytest.approx(1e-6 * whole.predicted, rel=1e-9)
