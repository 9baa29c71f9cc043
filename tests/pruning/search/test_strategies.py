"""Strategies: what each is told apart by, and that nobody outside this folder asks for a name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pruning.costs.accounting import Accounting
from pruning.importance.block_influence import BlockInfluence
from pruning.search.allocation_result import Allocation
from pruning.search.fixed import path_between
from pruning.search.settings import STRATEGY_NAMES, SearchSettings, StrategyName
from pruning.search.strategies import STRATEGIES, strategy_of
from pruning.search.strategy import Measured
from pruning.shape import ModelShape, Removal
from tests.conftest import ROOT, tiny_config


@pytest.fixture(scope="module")
def accounting() -> Accounting:
    return Accounting(tiny_config("llama"))


def settings_of(accounting: Accounting, strategy: StrategyName) -> SearchSettings:
    kind = STRATEGIES[strategy]
    channels_only = kind.channels_only or kind.solves_shares
    return SearchSettings.resolved(
        accounting.geometry,
        target_ratio=0.1,
        distribution=(0, 1, 0) if channels_only else (1, 0, 0),
        strategy=strategy,
        seed=7,
    )


def test_every_name_has_a_strategy() -> None:
    assert tuple(STRATEGIES) == STRATEGY_NAMES
    assert {name: strategy.name for name, strategy in STRATEGIES.items()} == {
        name: name for name in STRATEGY_NAMES
    }


@pytest.mark.parametrize("name", STRATEGY_NAMES)
def test_plan_and_search_of_each(accounting: Accounting, name: StrategyName) -> None:
    """The first proposal is known once what the strategy needs is measured, and what a search
    takes is inside its plan.
    """
    strategy = strategy_of(settings_of(accounting, name))
    influence = BlockInfluence((0.4, 0.1, 0.3, 0.2))
    allocation = Allocation(
        accounting.dense, ModelShape.parse("3x48 3x24 2x36 3x0"), 0.2, 0.1, 9, ()
    )
    measured: Measured = {"influence": influence, "allocation": allocation}
    search = strategy.search(
        accounting,
        {need: measured[need] for need in strategy.needs},  # type: ignore[typeddict-item]
    )
    first = search.propose()
    assert (len(first) > 1) == strategy.compares_candidates
    if strategy.whole_layers:
        assert first == (Removal("attention", 1, 0),)
    while not search.done:
        search.observe(dict.fromkeys(search.propose(), 1.0))
    assert search.steps
    kinds = {step.removal.kind for step in search.steps}
    if not strategy.compares_candidates:
        assert strategy.blocks_only == (kinds <= {"attention", "mlp"})
    for stage in strategy.planned(accounting).stages:
        candidates = [len(step.candidates) for step in search.steps if step.stage == stage.name]
        assert stage.steps.min <= len(candidates) <= stage.steps.max
        if not stage.steps.max:
            continue  # what is measured before the first step
        assert stage.evaluations.min <= sum(candidates) <= stage.evaluations.max


def comparisons(source: str) -> list[int]:
    """Lines that compare something with a strategy's name, or with `strategy` itself."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [inner for side in (node.left, *node.comparators) for inner in ast.walk(side)]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        else:
            continue
        if any(isinstance(side, ast.Constant) and side.value in STRATEGY_NAMES for side in sides):
            found.append(node.lineno if isinstance(node, ast.Compare) else node.value.lineno)
    return found


def test_no_name_of_a_strategy_is_compared_outside_of_search() -> None:
    """A new strategy is one class: nothing else asks which one it is."""
    files = [
        path
        for package in ("pruning", "workers", "pipelines", "experiments")
        for path in sorted((ROOT / package).rglob("*.py"))
        if ROOT / "pruning" / "search" not in path.parents
    ]
    assert len(files) > 100
    wrong = {
        f"{path.relative_to(ROOT)}:{line}" for path in files for line in comparisons(text(path))
    }
    assert wrong == set()


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "source",
    [
        'x = a.strategy == "greedy"',
        'if "random" != name: pass',
        'y = s in ("block_influence", "other")',
        'match s:\n    case "random": pass',
    ],
)
def test_the_check_sees_comparisons(source: str) -> None:
    assert comparisons(source)
    assert not comparisons(
        source.replace("greedy", "a").replace("random", "a").replace("block", "a")
    )


def test_the_path_to_an_allocation_goes_everywhere_at_once(accounting: Accounting) -> None:
    dense, shape = accounting.dense, ModelShape.parse("3x48 3x24 2x37 3x0")
    path = path_between(dense, shape)
    now, shapes = dense, []
    for removal in path:
        now = now.without(removal)
        shapes.append(now)
    assert now == shape
    assert [removal.remaining for removal in path if removal.layer == 3] == [36, 24, 12, 0]
    assert [removal.remaining for removal in path if removal.layer == 2] == [46, 43, 40, 2, 37]
    assert all(removal.layer for removal in path), "layer 0 is whole"
    widths = [layer.mlp_channels for layer in shapes[len(shapes) // 2].layers]
    assert all(last < width < 48 for last, width in zip((24, 37, 0), widths[1:], strict=True))


def test_the_path_to_an_allocation_takes_whole_groups(accounting: Accounting) -> None:
    """As many as there are, at most four; what is no whole group goes with the last."""
    dense, shape = accounting.dense, ModelShape.parse("1x48 3x32 3x36 2x13")
    path = path_between(dense, shape, channels=8, heads=2)
    cuts = {
        (layer, unit): [
            removal.remaining for removal in path if (removal.layer, removal.unit) == (layer, unit)
        ]
        for layer, unit in {(removal.layer, removal.unit) for removal in path}
    }
    assert cuts == {
        (0, "kv_heads"): [1],
        (1, "mlp_channels"): [40, 32],
        (2, "mlp_channels"): [36],
        (3, "mlp_channels"): [40, 32, 24, 13],
        (3, "kv_heads"): [2],
    }
