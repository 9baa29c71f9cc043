"""What a strategy says of its settings: what tells two searches apart, what the shape may cost, and
what is wrong with a target.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pruning.costs.accounting import Accounting
from pruning.costs.target import Cost, Target
from pruning.errors import InputError
from pruning.search.greedy import GreedySearch
from pruning.search.lazy import LazySearch
from pruning.search.plan import Range
from pruning.search.settings import LazySettings, SearchSettings, ShapeConstraint, StrategyName
from pruning.search.strategies import STRATEGIES, strategy_of
from pruning.search.strategy import Strategy
from tests.round_sizes import round_sizes

LAZY = LazySettings(wave_size=2, tolerance=0.5, rescore_every=3, near_layers=1)


@pytest.fixture
def accounting() -> Accounting:
    """Of 4 layers: an attention is 4 %, an MLP 6 %, all of them 40 %."""
    return round_sizes()


def settings_of(accounting: Accounting, **given: Any) -> SearchSettings:
    options: dict[str, Any] = {"target_ratio": 0.1, "distribution": (1, 0, 0)} | given
    return SearchSettings.resolved(accounting.geometry, **options)


def strategy(accounting: Accounting, **given: Any) -> Strategy:
    return strategy_of(settings_of(accounting, **given))


def traits(kind: type[Strategy]) -> set[str]:
    names = (
        "blocks_only",
        "channels_only",
        "solves_shares",
        "whole_layers",
        "by_divergence",
        "is_control",
        "any_cost",
        "compares_candidates",
    )
    return {name for name in names if getattr(kind, name)}


def test_what_each_strategy_can_and_cannot() -> None:
    assert {name: traits(kind) for name, kind in STRATEGIES.items()} == {
        "greedy": {"any_cost", "compares_candidates"},
        "block_influence": {"blocks_only", "whole_layers"},
        "random": {"blocks_only", "is_control"},
        "uniform": {"channels_only", "is_control", "any_cost"},
        "allocation": {"solves_shares", "by_divergence", "any_cost"},
    }


@pytest.mark.parametrize(
    ("constraint", "own"),
    [
        ("none", {}),
        ("deployable", {"search.layout": "portable"}),
        ("one_width", {"search.shape_constraint": "one_width"}),
    ],
)
def test_a_constraint_tells_searches_apart_by_the_name_that_folders_have(
    accounting: Accounting, constraint: ShapeConstraint, own: dict[str, str]
) -> None:
    given = {"mlp_group_channels": 2, "strategy": "random"}
    free = strategy(accounting, **given).identity()
    assert not {"search.layout", "search.shape_constraint"} & set(free)
    found = strategy(accounting, **given, shape_constraint=constraint).identity()
    assert found == free | own


def test_only_a_compensation_that_does_something_tells_searches_apart(
    accounting: Accounting,
) -> None:
    free = strategy(accounting).identity()
    assert "search.compensation" not in free
    assert strategy(accounting, compensation="least_squares").identity() == free | {
        "search.compensation": "least_squares"
    }


def test_targets_tell_searches_apart_as_they_were_given(accounting: Accounting) -> None:
    cost = Cost("flops", lambda _: 600, 1000)
    targets = (
        Target("search.target.flops", cost, 0.25),
        Target("search.target.memory", cost, "16GB"),
    )
    free = strategy(accounting).identity()
    assert free["search.target_ratio"] == 0.1
    assert strategy(accounting, targets=targets).identity() == free | {
        "search.target.flops": 0.25,
        "search.target.memory": "16GB",
    }
    alone = strategy(accounting, target_ratio=0.0, targets=targets)
    assert "search.target_ratio" not in alone.identity()


def test_a_shape_may_cost_what_every_target_leaves(accounting: Accounting) -> None:
    targets = (Target("search.target.flops", Cost("flops", lambda _: 600, 1000), 0.25),)
    both = strategy(accounting, targets=targets)
    assert [(limit.name, limit.most) for limit in both.limits(accounting)] == [
        ("search.target_ratio", 900.0),
        ("search.target.flops", 750.0),
    ]
    other = strategy(accounting, target_ratio=0.0, targets=targets)
    assert [limit.name for limit in other.limits(accounting)] == ["search.target.flops"]


@pytest.mark.parametrize("name", ["greedy", "random"])
def test_a_target_that_no_path_reaches_is_a_problem(
    accounting: Accounting, name: StrategyName
) -> None:
    reached = strategy(accounting, strategy=name, target_ratio=0.4)
    assert reached.problems(accounting) == []
    assert list(reached.first_shapes(accounting)) == [accounting.dense]
    beyond = strategy(accounting, strategy=name, target_ratio=0.41)
    with pytest.raises(InputError, match="the block stage runs out of candidates"):
        beyond.first_shapes(accounting)
    [problem] = beyond.problems(accounting)
    assert problem.startswith("search.target_ratio: 0.41; no path reaches it: the block stage")


def test_what_does_not_fit_the_model_is_said_and_not_the_target(accounting: Accounting) -> None:
    wrong = strategy(accounting, target_ratio=0.41, distribution=(1, 1, 0), mlp_group_channels=7)
    assert wrong.problems(accounting) == [
        "search.mlp_group_channels: 7; this model's MLPs have 6 channels"
    ]


def test_a_greedy_search_is_called_by_its_shares_and_how_candidates_are_selected(
    accounting: Accounting,
) -> None:
    settings = settings_of(accounting, distribution=(44, 52.5, 4))
    exhaustive, lazy = strategy_of(settings), strategy_of(replace(settings, lazy=LAZY))
    assert (exhaustive.label, lazy.label) == ("44:52.5:4", "44:52.5:4 lazy")
    assert lazy.identity() == exhaustive.identity() | {
        "search.selection": "lazy",
        "search.lazy.wave_size": 2,
        "search.lazy.tolerance": 0.5,
        "search.lazy.rescore_every": 3,
        "search.lazy.near_layers": 1,
    }


def test_a_lazy_search_scores_at_least_one_candidate_a_step(accounting: Accounting) -> None:
    settings = settings_of(accounting)
    exhaustive, lazy = strategy_of(settings), strategy_of(replace(settings, lazy=LAZY))
    assert type(exhaustive.search(accounting, {})) is GreedySearch
    assert type(lazy.search(accounting, {})) is LazySearch
    plan = exhaustive.planned(accounting)
    # two or three steps to 10 %, of eight candidates
    assert plan.stages[0].evaluations == Range(8 + 7, 8 + 7 + 6)
    assert not plan.at_most
    of_lazy = lazy.planned(accounting)
    assert of_lazy.stages[0] == replace(plan.stages[0], evaluations=Range(2, 8 + 7 + 6))
    assert of_lazy.at_most


@pytest.mark.parametrize(
    ("name", "label", "own"),
    [
        ("greedy", "1:0:0", {}),
        ("block_influence", "block_influence", {"search.strategy": "block_influence"}),
        ("random", "random 7", {"search.strategy": "random", "search.seed": 7}),
    ],
)
def test_only_what_a_strategy_reads_tells_its_searches_apart(
    accounting: Accounting, name: StrategyName, label: str, own: dict[str, object]
) -> None:
    found = strategy(accounting, strategy=name, seed=7)
    assert found.label == label
    assert found.identity() == own | {
        "search.target_ratio": 0.1,
        "search.distribution": [1.0, 0.0, 0.0],
        "search.importance": "activation",
        "search.mlp_group_channels": 1,
        "search.head_group_channels": 16,
    }
