"""The stages of settings, and what settings a model cannot have.

The model's KV heads have 16 query channels each; it has four of them and 6 MLP channels.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.models.families import Family
from pruning.search.settings import SearchSettings, ShapeConstraint
from pruning.search.stages import Stage, make_stages, stage_problems
from tests.round_sizes import round_sizes

Shares = tuple[float, float, float]
BLOCKS_ONLY = Family("other", attention_cuts=(), mlp_cuts=())


def settings_of(
    accounting: Accounting,
    shares: Shares = (40, 40, 20),
    channels: int = 2,
    heads: int = 16,
    constraint: ShapeConstraint = "none",
) -> SearchSettings:
    return SearchSettings.resolved(
        accounting.geometry,
        target_ratio=0.5,
        distribution=shares,
        mlp_group_channels=channels,
        head_group_channels=heads,
        shape_constraint=constraint,
    )


def test_stages_end_at_cumulative_targets_and_count_heads() -> None:
    accounting = round_sizes()
    assert make_stages(accounting, settings_of(accounting, (1, 2, 1), heads=32)) == (
        Stage("block", 0.125, 0, None),
        Stage("mlp_channels", 0.375, 2, None),
        Stage("attention_heads", 0.5, 2, None),
    )


def test_a_stage_is_scored_on_the_text_of_its_kind_or_on_the_one_it_names() -> None:
    stages = [Stage(name, 0.1) for name in ("block", "mlp_channels", "attention_heads")]
    assert [stage.token_set for stage in stages] == ["block", "width", "width"]
    assert [replace(stage, scored_on="block").token_set for stage in stages] == ["block"] * 3


@pytest.mark.parametrize("shares", [(1, 0.5, 0), (1, 0, 0.5), (0.5, 0.25, 0.25), (0, 40, 20)])
def test_a_family_of_whole_blocks_takes_no_share_of_widths(shares: Shares) -> None:
    accounting = round_sizes(family=BLOCKS_ONLY)
    [problem] = stage_problems(accounting, settings_of(accounting, shares))
    assert problem.startswith("search.distribution: ")
    assert "'other' is pruned by whole blocks only" in problem
    assert stage_problems(accounting, settings_of(accounting, (1, 0, 0))) == []


@pytest.mark.parametrize(("channels", "fits"), [(0, False), (1, True), (6, True), (7, False)])
@pytest.mark.parametrize("share", [0.5, 40])
def test_a_group_of_channels_is_one_to_all_of_them(
    channels: int, share: float, *, fits: bool
) -> None:
    accounting = round_sizes()
    settings = settings_of(accounting, (1, share, 0), channels)
    problem = f"search.mlp_group_channels: {channels}; this model's MLPs have 6 channels"
    assert stage_problems(accounting, settings) == ([] if fits else [problem])
    assert stage_problems(accounting, replace(settings, distribution=(1, 0, 0))) == []


@pytest.mark.parametrize(
    ("group", "fits"),
    [(0, False), (8, False), (16, True), (24, False), (32, True), (48, False), (64, False)],
)
@pytest.mark.parametrize("share", [0.5, 40])
def test_a_group_of_heads_is_whole_heads_that_divide_all(
    group: int, share: float, *, fits: bool
) -> None:
    accounting = round_sizes()
    settings = settings_of(accounting, (1, 0, share), heads=group)
    problem = (
        f"search.head_group_channels: {group}; groups are whole KV heads with their queries "
        "(16 query channels each here) that divide all 64, and one of them stays: one of [16, 32]"
    )
    assert stage_problems(accounting, settings) == ([] if fits else [problem])
    assert stage_problems(accounting, replace(settings, distribution=(1, 0, 0))) == []


def test_the_smallest_groups_of_heads() -> None:
    """One of two heads; and heads of one channel, of which one goes at a time."""
    two = round_sizes(kv_heads=2)
    assert stage_problems(two, settings_of(two, (1, 0, 1))) == []
    narrow = round_sizes(queries_per_kv_head=1, head_dim=1)
    assert stage_problems(narrow, settings_of(narrow, (1, 0, 1), heads=1)) == []
    one = round_sizes(kv_heads=1)
    [problem] = stage_problems(one, settings_of(one, (1, 0, 1)))
    assert "this model has one KV head in a layer, which stays" in problem


@pytest.mark.parametrize(
    ("width", "group", "constraint", "fits"),
    [
        (1024, 256, "deployable", True),
        (1024, 512, "deployable", True),
        (1024, 100, "deployable", False),
        (1000, 256, "deployable", False),
        (1000, 100, "deployable", False),
        (1000, 100, "none", True),
        (1000, 100, "one_width", True),
    ],
)
def test_deployable_widths_and_groups_are_multiples_of_256(
    width: int, group: int, constraint: ShapeConstraint, *, fits: bool
) -> None:
    accounting = round_sizes(mlp_channels=width, num_parameters=10**6)
    settings = settings_of(accounting, (1, 1, 0), group, constraint=constraint)
    problems = stage_problems(accounting, settings)
    assert (problems == []) == fits
    if not fits:
        assert f"this model has {width} channels" in problems[0]
        assert f"search.mlp_group_channels takes {group} at a time" in problems[0]


def test_all_problems_are_said_at_once() -> None:
    accounting = round_sizes()
    settings = settings_of(accounting, channels=7, heads=64)
    problems = stage_problems(accounting, settings)
    assert [problem.split(":")[0] for problem in problems] == [
        "search.mlp_group_channels",
        "search.head_group_channels",
    ]
    with pytest.raises(InputError) as caught:
        make_stages(accounting, settings)
    assert str(caught.value) == "\n".join(problems)
