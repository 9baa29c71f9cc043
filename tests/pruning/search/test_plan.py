"""Plans hold for every path: searches with any scores stay inside the ranges, and small ones come
to their ends.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig

from pruning.costs.accounting import Accounting
from pruning.errors import TargetNotReached
from pruning.export.authors_config import read_authors_config
from pruning.importance.block_influence import BlockInfluence
from pruning.search.fixed import FixedSearch, random_path
from pruning.search.greedy import GreedySearch
from pruning.search.plan import Range, SearchPlan, merged, planned_flops, step_flops
from pruning.search.settings import SearchSettings, ShapeConstraint, StrategyName
from pruning.search.stages import StageName
from pruning.search.strategies import strategy_of
from pruning.shape import LayerShape, ModelShape, Removal
from tests.conftest import tiny_config


def settings_of(
    accounting: Accounting,
    ratio: float,
    distribution: tuple[float, ...],
    constraint: ShapeConstraint = "none",
    strategy: StrategyName = "greedy",
) -> SearchSettings:
    return SearchSettings.resolved(
        accounting.geometry,
        target_ratio=ratio,
        distribution=distribution,
        mlp_group_channels=256,
        head_group_channels=16,
        shape_constraint=constraint,
        strategy=strategy,
    )


def plan_of(accounting: Accounting, settings: SearchSettings) -> SearchPlan:
    return strategy_of(settings).planned(accounting)


def walk(search: GreedySearch, seed: int) -> dict[StageName, tuple[int, int]]:
    """Steps and evaluations of each stage of a search whose scores are random, or favour one layer,
    or one kind of block.
    """
    generator, taste = random.Random(seed), seed % 4
    while not search.done:
        candidates = search.propose()
        scores = {candidate: generator.random() for candidate in candidates}
        if taste == 1:
            scores = {
                candidate: candidate.layer for candidate in candidates
            }  # uses up one layer after the other
        elif taste == 2:
            scores = {candidate: -candidate.remaining for candidate in candidates}  # spreads evenly
        elif taste == 3:
            scores = {
                candidate: (candidate.kind == "mlp") + score for candidate, score in scores.items()
            }
        search.observe(scores)
    return {
        stage.name: (
            sum(step.stage == stage.name for step in search.steps),
            sum(len(step.candidates) for step in search.steps if step.stage == stage.name),
        )
        for stage in search.stages
    }


@pytest.mark.parametrize("constraint", ["none", "deployable"])
@pytest.mark.parametrize(
    ("ratio", "distribution"),
    [
        (0.3, (44, 52, 4)),
        (0.3, (10, 80, 10)),
        (0.2, (1, 0, 0)),
        (0.45, (30, 70, 0)),
        (0.02, (0, 0, 1)),
    ],
)
def test_every_path_is_inside(
    ratio: float, distribution: tuple[float, ...], constraint: ShapeConstraint
) -> None:
    accounting = Accounting(tiny_config("qwen2", intermediate_size=1024, num_hidden_layers=6))
    settings = settings_of(accounting, ratio, distribution, constraint)
    plan = plan_of(accounting, settings)
    assert plan.impossible is None
    seen: dict[StageName, list[tuple[int, int]]] = {stage.name: [] for stage in plan.stages}
    for seed in range(60):
        try:
            counts = walk(GreedySearch(accounting, settings), seed)
        except TargetNotReached:
            assert plan.dead_ends
            continue
        for name, count in counts.items():
            seen[name].append(count)
    for stage in plan.stages:
        steps, evaluations = ([count[index] for count in seen[stage.name]] for index in (0, 1))
        assert stage.steps.min <= min(steps) <= max(steps) <= stage.steps.max
        assert (
            stage.evaluations.min <= min(evaluations) <= max(evaluations) <= stage.evaluations.max
        )
    first = plan.stages[0]
    if not plan.dead_ends:
        assert {first.steps.min, first.steps.max} <= {steps for steps, _ in seen[first.name]}, (
            "both ends of the block stage are reached"
        )


@pytest.mark.parametrize("constraint", ["none", "deployable"])
@pytest.mark.parametrize("ratio", [0.01, 0.2, 0.45])
def test_paths_that_do_not_depend_on_scores_are_inside(
    ratio: float, constraint: ShapeConstraint
) -> None:
    accounting = Accounting(tiny_config("qwen2", intermediate_size=1024, num_hidden_layers=6))
    random_order, by_influence = (
        settings_of(accounting, ratio, (1, 0, 0), constraint, strategy)
        for strategy in ("random", "block_influence")
    )
    drawn, layers = plan_of(accounting, random_order), plan_of(accounting, by_influence)
    assert [stage.name for stage in drawn.stages] == ["block", "mlp_channels", "attention_heads"]
    counts, ratios = [], []
    for seed in range(200):
        search = FixedSearch(accounting, random_order, random_path(accounting.dense, seed))
        counts.append(walk(search, seed)["block"])
        ratios.append(search.ratio)
    found = drawn.stages[0]
    assert found.steps == found.evaluations
    assert (found.steps.min, found.steps.max) == (
        min(steps for steps, _ in counts),
        max(steps for steps, _ in counts),
    )
    assert found.ratio[0] <= min(ratios) <= max(ratios) <= found.ratio[1]
    search = FixedSearch(
        accounting, by_influence, BlockInfluence((0.3, 0.1, 0.4, 0.2, 0.6, 0.5)).path
    )
    steps, evaluations = walk(search, 0)["block"]
    found = layers.stages[0]
    assert (
        steps
        == evaluations
        == found.steps.min
        == found.steps.max
        == found.evaluations.min
        == found.evaluations.max
    )
    assert found.ratio == (search.ratio, search.ratio)
    assert drawn.impossible is layers.impossible is None
    assert not layers.dead_ends


def test_a_path_that_ends_before_the_target_is_counted_to_its_end() -> None:
    accounting = Accounting(tiny_config("llama"))
    settings = settings_of(accounting, 0.9, (1, 0, 0), strategy="random")
    search = FixedSearch(accounting, settings, random_path(accounting.dense, 3)[:3])
    expected = []
    for _ in range(3):
        expected.append((search.expected_evaluations(), len(search.foreseen())))
        if len(search.steps) < 2:
            search.observe(dict.fromkeys(search.propose(), 1.0))
    assert expected == [(3, 3), (2, 2), (1, 1)]


def test_whole_layers_that_are_too_few() -> None:
    accounting = Accounting(tiny_config("llama"))
    assert (
        plan_of(
            accounting,
            settings_of(accounting, 0.5, (1, 0, 0), "deployable", "block_influence"),
        ).impossible
        == "block"
    )


def test_a_target_that_no_path_reaches() -> None:
    accounting = Accounting(tiny_config("llama", intermediate_size=1024))
    plan = plan_of(accounting, settings_of(accounting, 0.9, (0, 100, 0)))
    assert plan.impossible == "mlp_channels"
    assert plan.dead_ends
    assert [stage.name for stage in plan.stages] == ["block"]


@pytest.mark.parametrize("ordinary", [[0], [0, 1], [4]])
def test_a_mixture_with_ordinary_layers_reaches_what_all_blocks_come_to(
    ordinary: list[int],
) -> None:
    """Its layers are not alike: an MLP is a tenth of a mixture of experts here."""
    sizes = {"num_hidden_layers": 5, "moe_intermediate_size": 32, "num_experts": 32}
    accounting = Accounting(tiny_config("qwen3_moe", **sizes, mlp_only_layers=ordinary))
    most = accounting.ratio(ModelShape((LayerShape(0, 0),) * 5))
    for target in (0.3, 0.7, most):
        settings = settings_of(accounting, target, (1, 0, 0))
        assert plan_of(accounting, settings).impossible is None, target
        for seed in range(5):
            walk(GreedySearch(accounting, settings), seed)
    assert plan_of(accounting, settings_of(accounting, most + 0.001, (1, 0, 0))).impossible


def test_a_plan_of_close_targets_holds_what_each_plan_holds() -> None:
    """One that no path reaches says only that there are dead ends."""
    accounting = Accounting(tiny_config("qwen2", intermediate_size=1024, num_hidden_layers=6))
    low, high, beyond = (
        plan_of(accounting, settings_of(accounting, ratio, (50, 50, 0)))
        for ratio in (0.2, 0.4, 0.95)
    )
    assert beyond.impossible is not None
    assert merged([low]) == low
    assert merged([beyond, low]) == replace(low, dead_ends=True)
    found = merged([low, high])
    assert [stage.name for stage in found.stages] == [stage.name for stage in low.stages]
    first, second = low.stages[0], high.stages[0]
    assert first.ratio[0] < second.ratio[0] <= first.ratio[1] < second.ratio[1]
    assert found.stages[0].ratio == (first.ratio[0], second.ratio[1])
    assert first.steps.min < second.steps.max
    assert found.stages[0].steps == Range(first.steps.min, second.steps.max)
    assert found.stages[0].evaluations == Range(first.evaluations.min, second.evaluations.max)
    assert found.stages[0].target_ratio == pytest.approx(0.15)


def test_a_target_that_some_paths_miss() -> None:
    """Where the block stage takes attention only, too few heads are left for the last one."""
    accounting = Accounting(tiny_config("qwen2", intermediate_size=1024, num_hidden_layers=6))
    settings = settings_of(accounting, 0.3, (10, 80, 10))
    plan = plan_of(accounting, settings)
    assert plan.dead_ends
    assert plan.impossible is None
    outcomes = set()
    for seed in range(20):
        try:
            walk(GreedySearch(accounting, settings), seed)
            outcomes.add("reached")
        except TargetNotReached:
            outcomes.add("missed")
    assert outcomes == {"reached", "missed"}


@pytest.mark.data
def test_published_searches_are_inside(shared: Path) -> None:
    """Evaluations that each published Llama-2-7B shape implies, for ratios that round to the
    published one.
    """
    runs = [
        run
        for run in json.loads((shared / "published/multipruner.json").read_text())
        if run["model"] == "Llama-2-7B"
    ]
    assert len(runs) == 7
    for run in runs:
        accounting = Accounting(AutoConfig.for_model(**run["config"]))
        settings = {
            "distribution": (44, 52, 4),
            "mlp_group_channels": 1024,
            "head_group_channels": 128,
        }
        ratio = run["target_ratio_percent"] / 100
        plans = [
            plan_of(
                accounting,
                SearchSettings.resolved(accounting.geometry, target_ratio=target, **settings),
            )
            for target in (ratio, ratio - 5e-4, ratio + 5e-4)
        ]
        for stage, count in zip(
            merged(plans).stages, implied(run["pruning_config"], accounting), strict=True
        ):
            assert stage.evaluations.min <= count <= stage.evaluations.max, (
                run["target_ratio_percent"],
                stage,
            )
    assert implied(
        next(run for run in runs if run["target_ratio_percent"] == 22)["pruning_config"], accounting
    ) == [595, 1705, 529]


def implied(config: dict, accounting: Accounting) -> list[int]:
    """Evaluations of the path to a shape, if no layer was used up on the way."""
    shape = read_authors_config(config, accounting.dense, channels_per_kv_head=128)
    blocks = len(config["pruned_attn_idx"]) + len(config["pruned_mlp_idx"])
    mlp_layers, attention_layers = (
        sum(bool(getattr(layer, name)) for layer in shape.layers)
        for name in ("mlp_channels", "kv_heads")
    )
    mlp_steps = sum(11008 - width for width in config["pruned_mlp_width"].values()) // 1024
    head_steps = sum(4096 - width for width in config["pruned_attn_width"].values()) // 128
    return [
        sum(64 - step for step in range(blocks)),
        mlp_layers * mlp_steps,
        attention_layers * head_steps,
    ]


def test_flops_of_a_step_are_those_of_its_parts() -> None:
    accounting = Accounting(tiny_config("llama"))
    search = GreedySearch(
        accounting,
        SearchSettings.resolved(
            accounting.geometry,
            target_ratio=0.3,
            distribution=(1, 0, 0),
            mlp_group_channels=16,
            head_group_channels=16,
        ),
    )
    removals = search.propose()
    dense = accounting.flops_per_token(accounting.dense, context_length=32)
    head = 2 * accounting.head_weights
    layer = (dense - head) // 4
    found = step_flops(accounting, removals, accounting.dense, num_sequences=3, sequence_length=32)
    assert found == 3 * 32 * (
        4 * layer + sum((4 - removal.layer) * layer + head for removal in removals)
    )
    lower = ModelShape.parse("0x48 3x48*3")
    assert step_flops(accounting, removals[1:], lower, num_sequences=3, sequence_length=32) < found
    empty = ModelShape.parse("0x0 3x48*3")
    assert step_flops(accounting, [], empty, num_sequences=3, sequence_length=32) == 3 * 32 * (
        3 * layer
    )
    assert step_flops(
        accounting, [Removal("mlp", 3, 0)], accounting.dense, num_sequences=3, sequence_length=32
    ) == 3 * 32 * accounting.flops_per_token(ModelShape.parse("3x48*3 3x0"), context_length=32)


def test_planned_flops_are_near_those_of_a_search() -> None:
    accounting = Accounting(tiny_config("llama", num_hidden_layers=12, intermediate_size=128))
    settings = SearchSettings.resolved(
        accounting.geometry,
        target_ratio=0.3,
        distribution=(44, 52, 4),
        mlp_group_channels=16,
        head_group_channels=16,
    )
    plan: SearchPlan = plan_of(accounting, settings)
    search = GreedySearch(accounting, settings)
    walk(search, 0)
    base, real = accounting.dense, 0.0
    for step in search.steps:
        real += step_flops(
            accounting,
            [removal for removal, _ in step.candidates],
            base,
            num_sequences=2,
            sequence_length=64,
        )
        base = step.shape
    planned = planned_flops(
        accounting,
        plan,
        tokens={"block": 128, "width": 128},
        sequence_length=64,
        num_prefixes={"block": 1, "width": 1},
    )
    assert planned == pytest.approx(real, rel=0.25)
