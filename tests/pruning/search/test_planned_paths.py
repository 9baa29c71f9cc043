"""Plans of small models: their ranges are those of all paths, each of which is walked here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pruning.costs.accounting import Accounting
from pruning.search.greedy import candidates_of, is_allowed
from pruning.search.plan import (
    Range,
    SearchPlan,
    StagePlan,
    compared_blocks,
    given_blocks,
    given_layers,
    merged,
    plan_search,
)
from pruning.search.settings import SearchSettings, ShapeConstraint
from pruning.search.stages import Stage, make_stages
from pruning.shape import ModelShape, Removal
from tests.round_sizes import round_sizes

Shares = tuple[float, float, float]
State = tuple[ModelShape, int, int]
"""A shape, and the steps and evaluations of the stage so far."""


def small(num_layers: int = 3) -> Accounting:
    """An attention is 6 %, an MLP 8 % of all; each has 2 % for each of its heads or channels."""
    return round_sizes(num_layers, num_parameters=500, kv_heads=3, mlp_channels=4)


def settings_of(
    accounting: Accounting,
    ratio: float,
    shares: Shares,
    *,
    constraint: ShapeConstraint = "none",
    channels: int = 1,
    heads: int = 1,
) -> SearchSettings:
    return SearchSettings.resolved(
        accounting.geometry,
        target_ratio=ratio,
        distribution=shares,
        mlp_group_channels=channels,
        head_group_channels=heads * accounting.geometry.channels_per_kv_head,
        shape_constraint=constraint,
    )


def all_paths(
    accounting: Accounting, settings: SearchSettings, *, one_each: bool = False
) -> SearchPlan:
    """Goes every path, removal by removal.

    Args:
        one_each: a step of the block stage scores one candidate, whichever that is.
    """
    shapes, dead_ends = {accounting.dense}, False
    plans: list[StagePlan] = []
    for stage in make_stages(accounting, settings):
        reached: set[State] = set()
        walking: set[State] = {(shape, 0, 0) for shape in shapes}
        while walking:
            there = {each for each in walking if accounting.ratio(each[0]) >= stage.target_ratio}
            reached |= there
            after = set()
            for shape, steps, evaluations in walking - there:
                candidates = removals(stage, shape, settings.shape_constraint)
                dead_ends |= not candidates
                more = 1 if one_each and stage.name == "block" else len(candidates)
                after |= {
                    (shape.without(each), steps + 1, evaluations + more) for each in candidates
                }
            walking = after
        if not reached:
            return SearchPlan(tuple(plans), dead_ends, stage.name)
        shapes = {shape for shape, _, _ in reached}
        plans.append(
            StagePlan(
                stage.name,
                stage.target_ratio,
                range_of({steps for _, steps, _ in reached}),
                range_of({evaluations for _, _, evaluations in reached}),
                (min(map(accounting.ratio, shapes)), max(map(accounting.ratio, shapes))),
            )
        )
    return SearchPlan(tuple(plans), dead_ends, None)


def removals(stage: Stage, shape: ModelShape, constraint: ShapeConstraint) -> list[Removal]:
    num_layers = len(shape.layers)
    return [
        removal
        for removal in candidates_of(stage, shape)
        if is_allowed(removal, num_layers, constraint)
    ]


def range_of(counts: set[int]) -> Range:
    return Range(min(counts), max(counts))


@pytest.mark.parametrize(
    ("ratio", "shares", "dead_ends", "impossible"),
    [
        (0.1, (1, 1, 1), False, None),
        (0.28, (1, 1, 0), True, None),
        (0.24, (1, 0, 0), False, None),
        (0.42, (1, 0, 0), False, None),
        (0.43, (1, 0, 0), True, "block"),
        (0.3, (2, 2, 1), True, None),
        (0.12, (0, 0, 1), False, None),
        (0.14, (0, 0, 1), True, "attention_heads"),
        (0.18, (0, 1, 0), False, None),
        (0.2, (0, 1, 0), True, "mlp_channels"),
        (0.24, (1, 2, 0), True, None),
    ],
)
def test_the_ranges_are_those_of_all_paths(
    ratio: float, shares: Shares, *, dead_ends: bool, impossible: str | None
) -> None:
    accounting = small()
    settings = settings_of(accounting, ratio, shares)
    plan = plan_search(accounting, settings, compared_blocks)
    assert plan == all_paths(accounting, settings)
    assert (plan.dead_ends, plan.impossible) == (dead_ends, impossible)


@pytest.mark.parametrize(
    ("ratio", "impossible"), [(0.02, None), (0.15, None), (0.28, None), (0.29, "block")]
)
def test_deployable_blocks_are_those_of_all_paths(ratio: float, impossible: str | None) -> None:
    """Two attentions and two MLPs, 28 % of all, are what can go."""
    accounting = small()
    settings = settings_of(accounting, ratio, (1, 0, 0), constraint="deployable")
    plan = plan_search(accounting, settings, compared_blocks)
    assert plan == all_paths(accounting, settings)
    assert plan.impossible == impossible


@pytest.mark.parametrize("ratio", [0.06, 0.25, 0.42, 0.43])
def test_blocks_in_a_given_order_are_those_of_all_orders(ratio: float) -> None:
    accounting = small()
    settings = settings_of(accounting, ratio, (1, 0, 0))
    plan = plan_search(accounting, settings, given_blocks)
    assert plan == all_paths(accounting, settings, one_each=True)


@pytest.mark.parametrize(("channels", "heads"), [(2, 2), (1, 1), (3, 3), (7, 3)])
def test_groups_of_several_go_at_a_time(channels: int, heads: int) -> None:
    """Of seven channels and six heads; the last group of a layer stays."""
    accounting = round_sizes(3, num_parameters=1000, kv_heads=6, mlp_channels=7)
    settings = settings_of(accounting, 0.07, (0, 3, 4), channels=channels, heads=heads)
    plan = plan_search(accounting, settings, compared_blocks)
    assert plan == all_paths(accounting, settings)


@pytest.mark.parametrize(
    ("num_layers", "ratio", "constraint", "layers"),
    [
        (3, 0.01, "none", 1),
        (3, 0.14, "none", 1),
        (3, 0.15, "none", 2),
        (3, 0.42, "none", 3),
        (3, 0.43, "none", None),
        (3, 0.14, "deployable", 1),
        (3, 0.15, "deployable", None),
        (2, 0.01, "deployable", None),
        (1, 0.01, "deployable", None),
    ],
)
def test_whole_layers_take_two_steps_each(
    num_layers: int, ratio: float, constraint: ShapeConstraint, layers: int | None
) -> None:
    """A layer is 14 %; `deployable` keeps the first and the last."""
    accounting = small(num_layers)
    settings = settings_of(accounting, ratio, (1, 0, 0), constraint=constraint)
    plan = plan_search(accounting, settings, given_layers)
    assert plan.impossible == ("block" if layers is None else None)
    assert plan.dead_ends == (layers is None)
    if layers is not None:
        steps = Range(2 * layers, 2 * layers)
        gone = 14 * layers / 100
        assert plan.stages[0] == StagePlan("block", ratio, steps, steps, (gone, gone))


@pytest.mark.parametrize("blocks", [given_layers, given_blocks])
def test_widths_go_from_the_layers_that_are_left(blocks: Callable[..., object]) -> None:
    """A layer is 14 %, an MLP channel 2 %, of which each layer loses three at most."""
    accounting = small()
    settings = settings_of(accounting, 0.22, (14, 8, 0))
    found = plan_search(accounting, settings, blocks)  # type: ignore[arg-type]
    if blocks is given_layers:
        block, mlp, heads = found.stages
        assert (block.steps, block.ratio) == (Range(2, 2), (0.14, 0.14))
        # four steps: both layers have a group left, or the first is used up after three
        assert (mlp.steps, mlp.evaluations) == (Range(4, 4), Range(2 + 2 + 2 + 1, 4 * 2))
        assert (heads.steps, heads.evaluations) == (Range(0, 0), Range(0, 0))
    else:
        assert found == all_paths(accounting, settings, one_each=True)


def test_a_plan_of_targets_that_no_path_reaches_goes_as_far_as_all_of_them() -> None:
    stage = StagePlan("block", 0.1, Range(1, 2), Range(3, 4), (0.1, 0.2))
    plans = [
        SearchPlan((stage,), dead_ends=True, impossible="mlp_channels"),
        SearchPlan((stage, stage), dead_ends=True, impossible="attention_heads"),
    ]
    assert merged(plans) == plans[0]


def test_targets_that_no_path_reaches_say_only_that_there_are_dead_ends() -> None:
    stage = StagePlan("block", 0.1, Range(1, 2), Range(3, 4), (0.1, 0.2), "width")
    reached = SearchPlan((stage,), dead_ends=False, impossible=None)
    beyond = SearchPlan((), dead_ends=True, impossible="block")
    assert merged([reached]) == reached
    assert merged([beyond, reached]) == SearchPlan((stage,), dead_ends=True, impossible=None)


def test_a_plan_of_several_targets_has_the_mean_target_and_the_widest_ranges() -> None:
    low = StagePlan("block", 0.25, Range(2, 5), Range(30, 50), (0.25, 0.375))
    high = StagePlan("block", 0.75, Range(1, 7), Range(40, 70), (0.5, 0.625))
    plans = [SearchPlan((each,), dead_ends=False, impossible=None) for each in (low, high)]
    widest = StagePlan("block", 0.5, Range(1, 7), Range(30, 70), (0.25, 0.625))
    assert merged(plans) == SearchPlan((widest,), dead_ends=False, impossible=None)


def test_a_plan_as_files_have_it() -> None:
    plan = SearchPlan(
        (StagePlan("block", 0.25, Range(1, 2), Range(3, 4), (0.25, 0.375)),),
        dead_ends=False,
        impossible=None,
    )
    expected = {
        "steps": {"block": {"min": 1, "max": 2}},
        "evaluations": {"block": {"min": 3, "max": 4}},
        "ratio": {"block": {"min": 0.25, "max": 0.375}},
        "dead_ends": False,
    }
    assert plan.to_json() == expected
    at_most = SearchPlan(plan.stages, dead_ends=False, impossible=None, at_most=True)
    assert at_most.to_json() == expected | {"at_most": True}


def test_widths_are_scored_on_their_own_text_unless_a_plan_says_otherwise() -> None:
    none = Range(0, 0)
    block, width = (
        StagePlan("block", 0.1, none, none, (0, 0)),
        StagePlan("mlp_channels", 0.1, none, none, (0, 0)),
    )
    assert (block.token_set, width.token_set) == ("block", "width")
    assert replace(width, scored_on="block").token_set == "block"
