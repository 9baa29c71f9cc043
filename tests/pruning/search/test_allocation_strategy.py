"""What the settings of an allocation come to in its rounds and in its path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pruning.costs.accounting import Accounting
from pruning.costs.target import Cost, Target, costs_of
from pruning.errors import InputError
from pruning.search.allocation_path import AllocationPath, AllocationStrategy
from pruning.search.allocation_result import Allocation
from pruning.search.plan import Range, StagePlan
from pruning.search.settings import SearchSettings
from pruning.search.strategies import strategy_of
from pruning.shape import ModelShape
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def accounting() -> Accounting:
    """Four layers of six KV heads, of a query head each, and 48 MLP channels."""
    return Accounting(
        tiny_config("llama", hidden_size=96, num_attention_heads=6, num_key_value_heads=6)
    )


def strategy(accounting: Accounting, **changes: Any) -> AllocationStrategy:
    given = {
        "target_ratio": 0.05,
        "distribution": (0, 1, 0),
        "mlp_group_channels": 8,
        "head_group_channels": 16,
    } | changes
    found = strategy_of(
        SearchSettings.resolved(accounting.geometry, strategy="allocation", **given)
    )
    assert isinstance(found, AllocationStrategy)
    return found


def test_rounds_are_as_the_settings_say(accounting: Accounting) -> None:
    search = strategy(accounting, rounds=5).measuring(accounting)
    assert (search.max_rounds, search.constraint, search.group, search.heads) == (5, "none", 8, 0)
    assert search.reference == search.shape
    one = replace(strategy(accounting).settings, rounds=1, table_ratio=0.06)
    shared = strategy_of(one).measuring(accounting)
    assert shared.max_rounds == 1
    assert accounting.ratio(shared.shape) == pytest.approx(0.06, abs=0.015)
    assert shared.reference == search.shape
    deployable = Accounting(tiny_config("llama", intermediate_size=512))
    found = strategy(deployable, shape_constraint="deployable", mlp_group_channels=256)
    assert found.measuring(deployable).constraint == "deployable"


def test_heads_move_in_groups_and_stay_whole_in_the_first_table(accounting: Accounting) -> None:
    search = strategy(accounting, distribution=(0, 1, 1)).measuring(accounting)
    assert search.heads == 2
    assert {layer.kv_heads for layer in search.shape.layers} == {6}


@pytest.mark.parametrize("changes", [{}, {"table_ratio": 0.13}])
def test_heads_are_whole_where_mlps_lose_more_than_half(
    accounting: Accounting, changes: dict[str, float]
) -> None:
    """Where no other cost has a target; 0.16 is as far as MLPs alone go."""
    found = strategy(accounting, distribution=(0, 1, 1), target_ratio=0.13, **changes)
    shape = found.measuring(accounting).shape
    assert {layer.kv_heads for layer in shape.layers} == {6}
    assert max(layer.mlp_channels for layer in shape.layers[1:-1]) < 24
    beyond = strategy(accounting, distribution=(0, 1, 1), target_ratio=0.17)
    with pytest.raises(InputError, match="with attention whole; lower the target"):
        beyond.measuring(accounting)


def test_a_target_of_the_cache_narrows_heads_from_the_first_table_on(
    accounting: Accounting,
) -> None:
    cache = costs_of(accounting, context_length=32)["kv_cache"]
    target = Target("search.target.kv_cache", cache, 0.25)
    found = strategy(accounting, distribution=(0, 1, 1), targets=(target,))
    shape = found.measuring(accounting).shape
    assert sum(layer.kv_heads for layer in shape.layers) <= 18
    assert cache.of(shape) <= target.most


def test_a_shape_between_groups_is_as_near_as_half_a_group(accounting: Accounting) -> None:
    def widths(group: int) -> set[int]:
        search = strategy(accounting, mlp_group_channels=group).measuring(accounting)
        return {layer.mlp_channels for layer in search.shape.layers}

    assert any(width % 2 for width in widths(2)), "single channels, where two are a group"
    assert all(width % 4 == 0 for width in widths(8))


def test_the_plan_counts_the_uniform_shape_beside_a_shared_table(accounting: Accounting) -> None:
    own = strategy(accounting, rounds=1)
    shared = strategy_of(replace(own.settings, table_ratio=0.06))
    most = [each.planned(accounting).stages[0].evaluations.max for each in (own, shared)]
    tables = [len(each.measuring(accounting).propose().shapes) for each in (own, shared)]
    assert [count - table for count, table in zip(most, tables, strict=True)] == [4, 5]


def test_the_plan_is_of_the_first_table_and_knows_no_dead_ends(accounting: Accounting) -> None:
    found = strategy(accounting, rounds=1)
    wave = found.measuring(accounting).propose()
    assert wave is not None
    assert found.first_shapes(accounting) == (accounting.dense, *wave.shapes)
    plan = found.planned(accounting)
    count = len(wave.shapes)
    assert plan.stages[0] == StagePlan(
        "block", 0.0, Range(0, 0), Range(count, count + 4), (0.0, 0.0)
    )
    assert (plan.dead_ends, plan.impossible) == (False, None)


def test_without_a_target_of_parameters_they_come_as_they_may(accounting: Accounting) -> None:
    target = Target("search.target.flops", costs_of(accounting, context_length=32)["flops"], 0.05)
    found = strategy(accounting, target_ratio=0.0, targets=(target,))
    [_, channels] = found.planned(accounting).stages
    uniform = accounting.ratio(found.measuring(accounting).shape)
    assert channels.ratio == (uniform, uniform)


def a_target(name: str, cost: Callable[[ModelShape], int], most: int) -> Target:
    """Of a cost that a table of latencies may well have: not less for every smaller size."""
    return Target(f"search.target.{name}", Cost("latency", cost, 2 * most), 0.5)


def problems_of(accounting: Accounting, *targets: Target) -> list[str]:
    """Around a table of layer 1 whole and layer 2 at 44, which is measured at 28, 36 and 48."""
    settings = {"target_ratio": 0.0, "table_ratio": 0.001, "targets": targets}
    return strategy(accounting, **settings).problems(accounting)


def test_targets_that_a_shared_table_reaches_alone_and_not_together(
    accounting: Accounting,
) -> None:
    """The one asks for at most 40 channels of layer 2, the other for at least 40."""
    few = a_target("prefill", lambda shape: shape.layers[2].mlp_channels, 40)
    many = a_target("decode", lambda shape: 88 - shape.layers[2].mlp_channels, 48)
    assert problems_of(accounting, few) == problems_of(accounting, many) == []
    assert problems_of(accounting, few, many) == [
        "search.table_ratio: 0.001; what is measured around the uniform shape of that ratio does "
        "not reach search.target.prefill, search.target.decode together; give one that is nearer "
        "to it, or leave it out"
    ]


def test_every_target_out_of_reach_of_a_shared_table_is_said(accounting: Accounting) -> None:
    targets = [
        a_target(f"of_layer_{index}", lambda shape, at=index: shape.layers[at].mlp_channels, 20)
        for index in (1, 2)
    ]
    assert problems_of(accounting, *targets) == [
        "search.table_ratio: 0.001; what is measured around the uniform shape of that ratio goes "
        f"to {reached}, and search.target.{name} is 0.5; give one that is nearer to it, or leave "
        "it out"
        for name, reached in (("of_layer_1", "0.2"), ("of_layer_2", "0.3"))
    ]


def test_a_path_takes_groups_and_is_scored_on_the_text_of_the_table(
    accounting: Accounting,
) -> None:
    settings = strategy(accounting, distribution=(0, 1, 1)).settings
    shape = ModelShape.parse("6x48 2x48 6x32 6x48")
    allocation = Allocation(shape, shape, 1.0, 0.5, 7, ())
    path = AllocationPath(accounting, settings, allocation)
    assert path.stage is not None
    assert path.stage.token_set == "block"
    found = []
    while path.stage is not None:
        [removal] = path.propose()
        found.append((removal.kind, removal.layer, removal.remaining))
        path.observe({removal: 1.0})
    assert sorted(found) == [
        ("attention_heads", 1, 2),
        ("attention_heads", 1, 4),
        ("mlp_channels", 2, 32),
        ("mlp_channels", 2, 40),
    ]
