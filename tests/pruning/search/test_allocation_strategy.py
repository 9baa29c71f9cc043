"""What the settings of an allocation come to in its rounds and in its path."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pruning.costs.accounting import Accounting
from pruning.costs.target import Target, costs_of
from pruning.search.allocation_path import AllocationPath, AllocationStrategy
from pruning.search.allocation_result import Allocation
from pruning.search.settings import SearchSettings
from pruning.search.strategies import STRATEGIES, strategy_of
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


def test_only_an_allocation_solves_for_shares() -> None:
    assert [name for name, kind in STRATEGIES.items() if kind.solves_shares] == ["allocation"]


def test_rounds_are_as_the_settings_say(accounting: Accounting) -> None:
    search = strategy(accounting, rounds=5).measuring(accounting)
    assert (search.max_rounds, search.constraint, search.group, search.heads) == (5, "none", 8, 0)
    assert search.reference == search.shape
    one = replace(strategy(accounting).settings, rounds=1, table_ratio=0.06)
    shared = strategy_of(one).measuring(accounting)
    assert shared.max_rounds == 1
    assert accounting.ratio(shared.shape) == pytest.approx(0.06, abs=0.015)
    assert shared.reference == search.shape


def test_heads_move_in_groups_and_stay_whole_in_the_first_table(accounting: Accounting) -> None:
    search = strategy(accounting, distribution=(0, 1, 1)).measuring(accounting)
    assert search.heads == 2
    assert {layer.kv_heads for layer in search.shape.layers} == {6}


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
