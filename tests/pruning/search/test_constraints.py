"""Solutions under constraints: optimal by brute force on tables of any kind, and where there is
none, what keeps it away.
"""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.costs.accounting import Accounting
from pruning.costs.target import Cost, CostName, Target, costs_of
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
    Constraint,
    of_shape_constraint,
    solve_within,
    whole_attention,
    whole_blocks,
    width_multiple,
)
from pruning.shape import UNITS, ModelShape
from tests.conftest import tiny_config

ACCOUNTING = Accounting(tiny_config("llama", num_hidden_layers=3))
COSTS = costs_of(ACCOUNTING, context_length=32)
DENSE, BASE = ACCOUNTING.dense, ModelShape.parse("3x32 2x32 3x24")
CONSTRAINTS: dict[str, list[Constraint]] = {
    "none": [],
    "one width": of_shape_constraint("one_width", 3),
    "multiples of 16": [width_multiple(16)],
    "attention whole": [whole_attention(DENSE)],
    "depth only": [whole_blocks(DENSE)],
    "two": [width_multiple(16), *of_shape_constraint("one_width", 3)],
}


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


def table_of(text: str) -> Sensitivities:
    """`0 mlp 48 16 0` for each block that is measured, at changes that do not matter."""
    changes: dict[Block, dict[int, float]] = {}
    for line in text.splitlines():
        layer, kind, *sizes = line.split()
        block: Block = (int(layer), "mlp_channels" if kind == "mlp" else "kv_heads")
        changes[block] = {int(size): 0.1 for size in sizes} | {size_of(BASE, block): 0.0}
    return Sensitivities(BASE, changes)


KV: Cost = COSTS["kv_cache"]


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        (
            "0 mlp 0\n0 att 1\n1 att 1",
            ["attention whole"],
            r"search.whole_attention=true: the attention of layer 1 was measured at 1, 2 KV heads, "
            "none of which",
        ),
        (
            "0 att 1\n1 att 1 3\n2 att 1",
            ["attention whole"],
            r"kv: 0.3 is out of reach; .* come to 0 \(0.6667 without search.whole_attention=true\);"
            " lower the target, or drop a constraint that is named",
        ),
        (
            "0 att 1\n1 att 1 3\n2 att 1\n2 mlp 16",
            ["multiples of 16", "attention whole"],
            r"come to 0 \(0.6667 without search.whole_attention=true\);",
        ),
        (
            "0 att 1",
            ["none"],
            r"kv: 0.3\d* is out of reach; .* come to 0.3333; lower the target, or solve from a run",
        ),
        (
            "0 mlp 16\n1 mlp 48",
            ["one width"],
            "search.shape_constraint=one_width: no size was measured of the MLP of every layer: "
            r"layer 0 at 16, 32, layer 2 at 24;",
        ),
        (
            "0 att 1\n1 att 3 0\n2 att 0",
            ["depth only", "attention whole"],
            r"search.whole_blocks=true: the MLP of layer 0 was measured at 32 mlp channels",
        ),
    ],
)
def test_what_keeps_a_target_away_is_named(text: str, names: list[str], message: str) -> None:
    ratio = 0.34 if names == ["none"] else 0.3
    limits = [Limit.of_target(Target("kv", KV, ratio))]
    constraints = [each for name in names for each in CONSTRAINTS[name]]
    with pytest.raises(InputError, match=message):
        solve_within(table_of(text), limits, constraints)


def test_every_constraint_that_binds_is_named_with_its_price() -> None:
    """Of MLPs alone, of attention alone, and of both."""
    table = table_of("0 mlp 16 20\n0 att 1\n1 mlp 24\n1 att 3\n2 mlp 16")
    limit = Limit("kept", lambda shape: sum(x.kv_heads + x.mlp_channels for x in shape.layers), 1)
    constraints = [width_multiple(16), whole_attention(DENSE)]
    with pytest.raises(InputError) as caught:
        solve_within(table, [limit], constraints)
    assert re.sub(r".*come to (.*);.*", r"\1", str(caught.value)) == (
        "73 (65 without search.width_multiple=16, 70 without search.whole_attention=true, 62 "
        "without any constraint)"
    )


def test_deployable_shapes_keep_what_runtimes_want() -> None:
    """Attention in the first layer, an MLP in the last, widths in multiples of 256."""
    [deployable] = of_shape_constraint("deployable", 3)
    assert not deployable.allows((0, "kv_heads"), 0)
    assert deployable.allows((0, "kv_heads"), 1)
    assert deployable.allows((1, "kv_heads"), 0)
    assert not deployable.allows((2, "mlp_channels"), 0)
    assert deployable.allows((0, "mlp_channels"), 0)
    assert deployable.allows((0, "mlp_channels"), 512)
    assert not deployable.allows((0, "mlp_channels"), 500)
    assert of_shape_constraint("none", 3) == []


def test_a_constraint_says_whether_a_shape_keeps_it() -> None:
    dense = ModelShape.parse("3x48*3")
    even = ModelShape.parse("3x32*3")
    mixed = ModelShape.parse("3x32 2x40 3x48")
    assert of_shape_constraint("one_width", 3)[0].is_kept(even)
    assert not of_shape_constraint("one_width", 3)[0].is_kept(mixed)
    assert width_multiple(8).is_kept(mixed)
    assert not width_multiple(16).is_kept(mixed)
    assert whole_attention(dense).is_kept(even)
    assert not whole_attention(dense).is_kept(mixed)
