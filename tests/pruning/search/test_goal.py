"""Greedy searches towards other costs than parameters, and steps judged by score per cost."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from pruning.costs.accounting import Accounting
from pruning.costs.memory import MemoryLoad
from pruning.costs.target import Cost, CostName, Target, costs_of
from pruning.errors import InputError, ScoringError, TargetNotReached
from pruning.search.goal import Goal, tied_share, worth
from pruning.search.greedy import GreedySearch
from pruning.search.greedy_strategy import GreedyStrategy
from pruning.search.settings import JudgedBy, SearchSettings
from pruning.search.step import Step
from pruning.shape import ModelShape, Removal
from tests.conftest import tiny_config

Scores = Callable[[ModelShape], float]


@pytest.fixture(scope="module")
def accounting() -> Accounting:
    return Accounting(tiny_config("qwen3"))


def settings_of(
    accounting: Accounting,
    *,
    ratio: float = 0.0,
    distribution: Sequence[float] = (1, 0, 0),
    judged_by: JudgedBy = "score",
    **targets: float,
) -> SearchSettings:
    costs = costs_of(accounting, context_length=16)
    names: dict[str, CostName] = {"kv_cache": "kv_cache", "flops": "flops"}
    return SearchSettings.resolved(
        accounting.geometry,
        target_ratio=ratio,
        distribution=distribution,
        mlp_group_channels=16,
        head_group_channels=16,
        judged_by=judged_by,
        targets=[
            Target(f"search.target.{name}", costs[names[name]], given)
            for name, given in targets.items()
        ],
    )


def early_layers_matter(shape: ModelShape) -> float:
    return sum(
        (3 - layer.kv_heads + (48 - layer.mlp_channels) / 16) / (index + 1)
        for index, layer in enumerate(shape.layers)
    )


def mlps_go_first(shape: ModelShape) -> float:
    return -float(sum(layer.kv_heads for layer in shape.layers))


def run(search: GreedySearch, score: Scores = early_layers_matter) -> GreedySearch:
    while not search.done:
        asked = {candidate for candidate, _ in search.selection(1).next({})}
        search.observe(
            {
                each: score(search.shape if each is None else search.shape.without(each))
                for each in asked
            }
        )
    return search


@pytest.mark.parametrize(
    ("distribution", "targets"),
    [
        ((1, 0, 0), {"kv_cache": 0.4}),
        ((1, 0, 0), {"flops": 0.3}),
        ((0, 1, 0), {"flops": 0.1}),
        ((40, 40, 20), {"flops": 0.3, "kv_cache": 0.3}),
    ],
)
def test_a_search_ends_at_the_first_step_that_keeps_every_target(
    accounting: Accounting, distribution: Sequence[float], targets: dict[str, float]
) -> None:
    settings = settings_of(accounting, distribution=distribution, **targets)
    search = run(GreedySearch(accounting, settings))
    saved = [
        [target.cost.ratio(step.shape) - float(target.given) for target in settings.targets]
        for step in search.steps
    ]
    assert all(left >= -1e-9 for left in saved[-1])
    assert all(min(step) < 0 for step in saved[:-1])


def test_a_target_beside_a_ratio_of_parameters_keeps_both(accounting: Accounting) -> None:
    settings = settings_of(accounting, ratio=0.3, kv_cache=0.7)
    search = run(GreedySearch(accounting, settings), mlps_go_first)
    assert search.ratio >= 0.3
    assert settings.targets[0].cost.ratio(search.shape) >= 0.7 - 1e-9
    assert {step.removal.kind for step in search.steps} == {"attention", "mlp"}


def test_stages_end_at_their_shares_of_the_way(accounting: Accounting) -> None:
    settings = settings_of(accounting, distribution=(50, 25, 25), flops=0.4)
    search = run(GreedySearch(accounting, settings))
    cost = settings.targets[0].cost
    assert [stage.target_ratio for stage in search.stages] == [0.5, 0.75, 1.0]
    for name, share in (("block", 0.5), ("mlp_channels", 0.75), ("attention_heads", 1.0)):
        before = [
            cost.ratio(step.shape if first.stage == name else ModelShape(accounting.dense.layers))
            for step, first in itertools.pairwise(search.steps)
            if first.stage == step.stage == name
        ]
        ends = [cost.ratio(step.shape) for step in search.steps if step.stage == name]
        assert ends, name
        assert ends[-1] >= share * 0.4 - 1e-9
        assert all(each < share * 0.4 for each in ends[:-1]), before


def test_what_brings_nothing_of_the_target_is_no_candidate(accounting: Accounting) -> None:
    search = GreedySearch(accounting, settings_of(accounting, kv_cache=0.5))
    assert {candidate.kind for candidate in search.propose()} == {"attention"}
    both = GreedySearch(accounting, settings_of(accounting, flops=0.2))
    assert {candidate.kind for candidate in both.propose()} == {"attention", "mlp"}


def test_reached_is_the_mean_share_of_the_way_to_each_limit(accounting: Accounting) -> None:
    goal = Goal.of(accounting, settings_of(accounting, flops=0.5, kv_cache=0.25))
    flops, cache = (accounting.flops_per_token, accounting.kv_cache_bytes_per_token)
    dense = accounting.dense
    assert goal.reached(dense) == 0.0
    shape = dense.without(Removal("attention", 1, 0))
    saved = [
        1 - _count(flops(shape, context_length=16)) / _count(flops(dense, context_length=16)),
        1 - _count(cache(shape, bytes_per_value=2)) / _count(cache(dense, bytes_per_value=2)),
    ]
    expected = (min(1.0, saved[0] / 0.5) + min(1.0, saved[1] / 0.25)) / 2
    assert goal.reached(shape) == pytest.approx(expected)
    assert 0 < goal.reached(shape) < 1
    nothing = ModelShape(tuple(type(layer)(0, 0) for layer in dense.layers))
    assert goal.reached(nothing) == goal.whole == 1.0


def _count(found: int | None) -> int:
    assert found is not None
    return found


def test_of_parameters_alone_the_goal_is_the_ratio(accounting: Accounting) -> None:
    goal = Goal.of(accounting, settings_of(accounting, ratio=0.3))
    shape = accounting.dense.without(Removal("mlp", 0, 0))
    assert goal.whole == 0.3
    assert goal.reached(shape) == accounting.ratio(shape)


@pytest.mark.parametrize(
    ("changes", "gains", "best"),
    [
        ([0.3, 0.2], [3.0, 1.0], 0),  # 0.1 against 0.2 a unit
        ([0.3, 0.1], [3.0, 1.0], 0),  # equal: the first
        ([0.2, -0.1], [9.0, 1.0], 1),  # one that improves the score goes first
        ([-0.2, -0.1], [4.0, 1.0], 0),  # better in both
        ([-0.1, -0.2], [4.0, 1.0], 0),  # 0.4 against 0.2
    ],
)
def test_the_best_is_the_one_with_the_least_rise_for_what_it_brings(
    changes: list[float], gains: list[float], best: int
) -> None:
    values = [worth(change, gain) for change, gain in zip(changes, gains, strict=True)]
    assert values.index(min(values)) == best


@pytest.mark.parametrize("change", [0.3, 0.0, -0.3])
def test_at_the_tied_share_both_are_worth_the_same(change: float) -> None:
    share = tied_share(change, 2.0, 5.0)
    assert worth(share * change, 5.0) == pytest.approx(worth(change, 2.0))


def test_a_step_takes_the_least_rise_per_cost() -> None:
    """Attentions are smaller than MLPs here: by score they go first, by cost they need not."""
    accounting = Accounting(tiny_config("qwen3", intermediate_size=96))
    mlp, attention = Removal("mlp", 2, 0), Removal("attention", 2, 0)
    dense, gain = accounting.dense, accounting.ratio
    sizes = [gain(dense.without(each)) for each in (mlp, attention)]
    assert sizes[0] > sizes[1]

    def observed(judged_by: JudgedBy) -> Step:
        settings = settings_of(accounting, ratio=0.05, judged_by=judged_by)
        search = GreedySearch(accounting, settings)
        scores: dict[Removal | None, float] = dict.fromkeys(search.propose(), 9.0)
        scores |= {mlp: 2.0 + sizes[0], attention: 2.0 + sizes[1] * 1.1}
        return search.observe(scores | ({None: 2.0} if judged_by != "score" else {}))

    assert observed("score").removal == attention
    step = observed("score_per_cost")
    assert step.removal == mlp
    assert step.runner_up is not None
    assert step.runner_up[0] == attention
    assert step.margin == pytest.approx(sizes[1] * 0.1)
    assert step.margin_of(mlp) == 0.0
    assert step.gain_of(attention) == pytest.approx(sizes[1])


def test_the_margin_of_a_step_that_improves_the_score() -> None:
    """The one that is taken lowers it by 0.2 at a gain of `sizes[0]`: the other would have been
    worth as much with more of a fall at its smaller gain.
    """
    accounting = Accounting(tiny_config("qwen3", intermediate_size=96))
    mlp, attention = Removal("mlp", 2, 0), Removal("attention", 2, 0)
    sizes = [accounting.ratio(accounting.dense.without(each)) for each in (mlp, attention)]
    settings = settings_of(accounting, ratio=0.05, judged_by="score_per_cost")
    search = GreedySearch(accounting, settings)
    scores: dict[Removal | None, float] = dict.fromkeys(search.propose(), 9.0)
    step = search.observe(scores | {None: 2.0, mlp: 1.8, attention: 1.75})
    assert step.removal == mlp
    equal = 2.0 - 0.2 * sizes[0] / sizes[1]
    assert step.margin_of(attention) == pytest.approx(1.75 - equal)
    assert step.margin == step.margin_of(attention) > 0


def test_a_step_by_cost_needs_the_score_before_it(accounting: Accounting) -> None:
    search = GreedySearch(
        accounting, settings_of(accounting, ratio=0.1, judged_by="score_per_cost")
    )
    asked = [candidate for candidate, _ in search.selection(1).next({})]
    assert asked == [None, *search.propose()]
    scores: dict[Removal | None, float] = dict.fromkeys(asked, 1.0)
    assert search.decides(scores)
    assert not search.decides(dict.fromkeys(search.propose(), 1.0))
    with pytest.raises(ScoringError, match="the shape before it is inf"):
        search.observe(scores | {None: math.inf})


def test_sizes_that_bring_nothing_are_passed_over(accounting: Accounting) -> None:
    """32 of 48 channels cost as much as all of them, and 16 a third less than what is gone."""

    def cost(shape: ModelShape) -> int:
        return sum({48: 30, 32: 30, 16: 10, 0: 0}[layer.mlp_channels] for layer in shape.layers)

    dense = accounting.dense
    target = Target("search.target.latency", Cost("latency", cost, cost(dense)), 0.4)
    settings = replace(settings_of(accounting, distribution=(0, 1, 0)), targets=(target,))
    search = GreedySearch(accounting, settings)
    layers = range(len(dense.layers))
    assert search.propose() == tuple(Removal("mlp_channels", layer, 16) for layer in layers)
    plan = GreedyStrategy(settings).planned(accounting)
    [stage] = [each for each in plan.stages if each.name == "mlp_channels"]
    assert stage.steps.min == stage.steps.max == len(run(search).steps) == 3


def test_a_plan_holds_every_path_to_other_costs(accounting: Accounting) -> None:
    for distribution, targets in (
        ((1, 0, 0), {"flops": 0.3}),
        ((1, 0, 0), {"kv_cache": 0.6}),
        ((40, 40, 20), {"flops": 0.3}),
        ((0, 40, 60), {"flops": 0.2, "kv_cache": 0.2}),
    ):
        settings = settings_of(accounting, distribution=distribution, **targets)
        plan = GreedyStrategy(settings).planned(accounting)
        for sign in (1, -1):
            search = run(
                GreedySearch(accounting, settings),
                lambda shape, sign=sign: sign * early_layers_matter(shape),  # type: ignore[misc]
            )
            for stage in plan.stages:
                steps = [step for step in search.steps if step.stage == stage.name]
                assert stage.steps.min <= len(steps) <= stage.steps.max, (stage, targets)
                scored = sum(len(step.candidates) for step in steps)
                assert stage.evaluations.min <= scored <= stage.evaluations.max, (stage, targets)


def test_a_target_that_no_path_reaches_is_refused_by_its_name(accounting: Accounting) -> None:
    settings = settings_of(accounting, distribution=(0, 1, 0), kv_cache=0.2)
    problems = GreedyStrategy(settings).problems(accounting)
    assert problems == [
        "search.target.kv_cache: 0.2; no path reaches it: the mlp_channels stage runs out of "
        "candidates; lower it, give that stage a smaller share in search.distribution, or use "
        "smaller groups"
    ]
    with pytest.raises(TargetNotReached, match=r"search\.target\.kv_cache: stage 'mlp_channels'"):
        GreedySearch(accounting, settings).propose()
    with pytest.raises(InputError):
        GreedyStrategy(settings).first_shapes(accounting)


def test_what_is_left_to_score_is_estimated_by_the_goal(accounting: Accounting) -> None:
    settings = settings_of(accounting, distribution=(1, 0, 0), flops=0.5)
    search = GreedySearch(accounting, settings)
    plan = GreedyStrategy(settings).planned(accounting)
    assert 0 < search.expected_evaluations() <= plan.stages[0].evaluations.max * 2
    run(search)
    assert search.expected_evaluations() == 0


@pytest.mark.parametrize(
    ("distribution", "given"),
    [
        ((0, 0, 1), {"memory": 0.1}),
        ((50, 0, 50), {"memory": 0.2}),
        ((50, 50, 0), {"memory": 0.3}),
        ((1, 0, 0), {"parameters": 0.1, "kv_cache": 0.6}),
        ((30, 50, 20), {"parameters": 0.1, "kv_cache": 0.2, "flops": 0.15}),
    ],
)
def test_no_search_leaves_the_bounds_of_a_plan_where_layers_differ(
    distribution: Sequence[float], given: dict[str, float]
) -> None:
    """Every sixth layer keeps the whole context, the others a window of it: caches of all sizes."""
    accounting = Accounting(
        tiny_config(
            "gemma3_text", num_hidden_layers=12, sliding_window=32,
            layer_types=[*["sliding_attention"] * 5, "full_attention"] * 2,
            num_key_value_heads=3, num_attention_heads=6,
        )
    )  # fmt: skip
    load = MemoryLoad(context_length=8192, batch_size=16, dtype="float32")
    costs = costs_of(accounting, context_length=16, load=load)
    settings = SearchSettings.resolved(
        accounting.geometry,
        target_ratio=0.0,
        distribution=distribution,
        mlp_group_channels=16,
        targets=[
            Target(f"search.target.{name}", cost, given[name])
            for name, cost in costs.items()
            if name in given
        ],
    )
    plan = GreedyStrategy(settings).planned(accounting)
    assert plan.impossible is None
    for seed in range(12):
        draw = random.Random(seed)
        try:
            search = run(GreedySearch(accounting, settings), lambda _: draw.random())  # noqa: B023
        except TargetNotReached:
            assert plan.dead_ends
            continue
        for stage in plan.stages:
            steps = [step for step in search.steps if step.stage == stage.name]
            assert stage.steps.min <= len(steps) <= stage.steps.max, stage
            scored = sum(len(step.candidates) for step in steps)
            assert stage.evaluations.min <= scored <= stage.evaluations.max, stage


def test_a_slow_width_is_no_gain_on_the_way_to_a_fast_one() -> None:
    """20 of 80 channels take longer than 10 more of them: what comes back is no saving."""
    accounting = Accounting(tiny_config("llama", intermediate_size=80))
    times = {0: 10, 10: 60, 20: 100, 30: 80, 40: 120, 50: 100, 60: 130, 70: 120, 80: 160}

    def cost(shape: ModelShape) -> int:
        return sum(times[layer.mlp_channels] for layer in shape.layers)

    settings = SearchSettings.resolved(
        accounting.geometry,
        target_ratio=0.0,
        distribution=(0, 1, 0),
        mlp_group_channels=10,
        targets=[
            Target("search.target.latency", Cost("latency", cost, cost(accounting.dense)), 0.7)
        ],
    )
    assert GreedyStrategy(settings).planned(accounting).impossible == "mlp_channels"
    reachable = replace(settings, targets=(replace(settings.targets[0], given=0.6),))
    plan = GreedyStrategy(reachable).planned(accounting)
    [stage] = [each for each in plan.stages if each.name == "mlp_channels"]
    for seed in range(20):
        draw = random.Random(seed)
        search = run(GreedySearch(accounting, reachable), lambda _: draw.random())  # noqa: B023
        assert stage.steps.min <= len(search.steps) <= stage.steps.max
