"""What each constraint allows, and where no solution keeps it, what is said."""

from __future__ import annotations

import re

import pytest

from pruning.costs.target import Cost, Target, costs_of
from pruning.errors import InputError
from pruning.search.allocation import Block, Limit, Sensitivities, Solution, size_of
from pruning.search.constraints import (
    of_shape_constraint,
    solve_within,
    whole_attention,
    whole_blocks,
    width_multiple,
)
from pruning.shape import ModelShape
from tests.pruning.search.constraint_cases import ACCOUNTING, BASE, CONSTRAINTS, DENSE

KV: Cost = costs_of(ACCOUNTING, context_length=32)["kv_cache"]


def table_of(text: str) -> Sensitivities:
    """`0 mlp 48 16 0` for each block that is measured, at changes that do not matter."""
    changes: dict[Block, dict[int, float]] = {}
    for line in text.splitlines():
        layer, kind, *sizes = line.split()
        block: Block = (int(layer), "mlp_channels" if kind == "mlp" else "kv_heads")
        changes[block] = {int(size): 0.1 for size in sizes} | {size_of(BASE, block): 0.0}
    return Sensitivities(BASE, changes)


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
            "0 mlp 16\n2 mlp 16",
            ["one width"],
            "no size was measured of the MLP of every layer: layer 0 at 16, 32, layer 2 at 16, 24;",
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
    [one_width] = of_shape_constraint("one_width", 3)
    assert one_width.is_kept(even)
    assert not one_width.is_kept(mixed)
    assert not one_width.is_kept(ModelShape.parse("3x32*2 3x48"))
    assert width_multiple(8).is_kept(mixed)
    assert not width_multiple(16).is_kept(mixed)
    assert whole_attention(dense).is_kept(even)
    assert not whole_attention(dense).is_kept(mixed)
    assert whole_blocks(dense).is_kept(ModelShape.parse("3x48 0x48 3x0"))
    assert not whole_blocks(dense).is_kept(ModelShape.parse("3x48 1x48 3x0"))


def test_layers_without_a_width_in_common_are_named() -> None:
    """The first and the next that has none in common with it, of three."""
    table = Sensitivities(ModelShape.parse("3x32 3x24 3x32"), {(0, "mlp_channels"): {16: 0.5}})
    with pytest.raises(InputError, match=r"layer 0 at 16, layer 1 at 24;"):
        solve_within(table, [], CONSTRAINTS["one width"])


def test_one_width_is_solved_for() -> None:
    """Alone, every layer would stay as it is; 32 in all of them costs 3, 16 costs 5.5."""
    table = Sensitivities(
        BASE,
        {
            (0, "mlp_channels"): {16: 0.5, 24: 2.0, 32: 0.0},
            (1, "mlp_channels"): {16: 4.0, 24: 0.25, 32: 0.0},
            (2, "mlp_channels"): {16: 1.0, 24: 0.0, 32: 3.0},
        },
    )
    found = solve_within(table, [], CONSTRAINTS["one width"])
    assert found == Solution(ModelShape.parse("3x24 2x24 3x24"), 2.25)


def test_a_block_that_was_not_measured_stays_as_it_is() -> None:
    table = Sensitivities(BASE, {(1, "kv_heads"): {1: -0.5, 2: 0.0}})
    assert solve_within(table, [], []) == Solution(ModelShape.parse("3x32 1x32 3x24"), -0.5)
