"""The integer program against brute force, and rounds on an objective that is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.scoring.score import ShapeScore
from pruning.search.allocation import (
    Block,
    Limit,
    Sensitivities,
    neighbours,
    resized,
    size_of,
    solve,
)
from pruning.search.rounds import MOVES, AllocationSearch
from pruning.search.settings import SearchSettings
from pruning.search.strategies import strategy_of
from pruning.shape import ModelShape
from tests.conftest import tiny_config

BASE = ModelShape.parse("2x40*3")
DENSE = ModelShape.parse("3x48*3")


@pytest.fixture(scope="module")
def accounting() -> Accounting:
    return Accounting(tiny_config("llama"))


def table_of(seed: int) -> Sensitivities:
    """Random changes of six blocks at two to four sizes each."""
    draw = np.random.Generator(np.random.Philox(seed))
    sizes = neighbours(BASE, DENSE, channel_steps=(8, -8, -16), head_steps=(1, -1, -2))
    return Sensitivities(
        BASE,
        {
            block: {size_of(BASE, block): 0.0}
            | {size: float(draw.normal(size_of(BASE, block) - size, 5)) for size in found}
            for block, found in sizes.items()
        },
    )


def channels(shape: ModelShape) -> float:
    return float(sum(layer.mlp_channels for layer in shape.layers))


def heads(shape: ModelShape) -> float:
    return float(sum(layer.kv_heads for layer in shape.layers))


def best_by_trying(table: Sensitivities, limits: list[Limit], max_moves: int | None) -> float:
    least = math.inf
    blocks = list(table.changes)
    for sizes in itertools.product(*(table.changes[block] for block in blocks)):
        shape, total, moves = table.base, 0.0, 0
        for block, size in zip(blocks, sizes, strict=True):
            shape = resized(shape, block, size)
            total += table.changes[block][size]
            moves += size != size_of(table.base, block)
        if all(limit.cost(shape) <= limit.most for limit in limits) and (
            max_moves is None or moves <= max_moves
        ):
            least = min(least, total)
    return least


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("max_moves", [None, 2])
@pytest.mark.parametrize("two", [False, True])
def test_solutions_are_optimal(seed: int, max_moves: int | None, two: bool) -> None:
    table = table_of(seed)
    limits = [Limit("channels", channels, 112)] + ([Limit("heads", heads, 5)] if two else [])
    solution = solve(table, limits, max_moves=max_moves)
    assert all(limit.cost(solution.shape) <= limit.most for limit in limits)
    assert solution.predicted == pytest.approx(best_by_trying(table, limits, max_moves), abs=1e-9)


def test_a_limit_out_of_reach_is_named_with_how_far_sizes_go() -> None:
    reachable, hopeless = Limit("channels", channels, 112), Limit("heads", heads, -1)
    with pytest.raises(InputError, match=r"heads: -1 is out of reach; .* comes to 0;"):
        solve(table_of(0), [reachable, hopeless])


def test_limits_that_only_together_are_out_of_reach_are_named_together() -> None:
    limits = [Limit("channels", channels, 112), Limit("heads", heads, 5)]
    with pytest.raises(InputError, match="at most 1 changed blocks keeps all of channels, heads"):
        solve(table_of(0), limits, max_moves=1)


def test_a_size_without_a_finite_score_is_never_chosen() -> None:
    table = table_of(1)
    block: Block = (0, "mlp_channels")
    changes = dict.fromkeys(table.changes[block], math.nan) | {size_of(BASE, block): 0.0}
    broken = Sensitivities(BASE, dict(table.changes) | {block: changes})
    assert size_of(solve(broken, [Limit("channels", channels, 112)]).shape, block) == 40


Score = Callable[[ModelShape], ShapeScore]


def toy(weights: np.ndarray) -> Score:
    """A score on four sequences: squares of what is gone, weighted by layer, plus what couples
    neighbouring layers, so that changes do not quite add up."""

    def score(shape: ModelShape) -> ShapeScore:
        gone = np.array([48 - layer.mlp_channels for layer in shape.layers]) / 48
        coupled = 0.05 * float((gone[1:] * gone[:-1]).sum())
        value = float((weights * gone**2).sum()) + coupled
        value += 3.0 * sum(3 - layer.kv_heads for layer in shape.layers)
        return ShapeScore(tuple(10 * value * factor for factor in (0.9, 1.0, 1.1, 1.0)), 10)

    return score


def run(search: AllocationSearch, score: Score) -> list[str]:
    asked: list[str] = []
    while (wave := search.propose()) is not None:
        assert wave.shapes, "a wave that asks nothing"
        asked += [shape.text for shape in wave.shapes]
        search.observe({shape: score(shape) for shape in wave.shapes})
    return asked


def test_rounds_find_what_the_sensitivities_say() -> None:
    weights = np.array([8.0, 1.0, 1.0, 8.0])
    dense, start = ModelShape.parse("3x48*4"), ModelShape.parse("3x32*4")
    search = AllocationSearch(
        dense, start, [Limit("channels", channels, 128)], group=4, max_rounds=6
    )
    asked = run(search, toy(weights))
    assert len(asked) == len(set(asked)), "nothing is asked twice"
    widths = [layer.mlp_channels for layer in search.shape.layers]
    assert sum(widths) <= 128
    assert widths[0] > widths[1]
    assert widths[3] > widths[2]
    assert [layer.kv_heads for layer in search.shape.layers] == [3, 3, 3, 3]
    every = itertools.product(range(16, 49, 4), repeat=4)
    shapes = [ModelShape.parse(" ".join(f"3x{w}" for w in row)) for row in every if sum(row) <= 128]
    best = min(toy(weights)(shape).nll for shape in shapes)
    assert toy(weights)(search.shape).nll == pytest.approx(best, rel=0.02)
    assert all(later.gain >= 0 for later in search.rounds)
    allocation = search.result()
    assert (allocation.start, allocation.shape) == (start, search.shape)
    assert allocation.start_score == pytest.approx(toy(weights)(start).nll)
    assert allocation.score == pytest.approx(toy(weights)(search.shape).nll)


def test_rounds_are_deterministic() -> None:
    weights = np.array([2.0, 1.0, 3.0, 8.0])
    dense, start = ModelShape.parse("3x48*4"), ModelShape.parse("3x32*4")
    limits = [Limit("channels", channels, 128)]
    first, second = (
        run(AllocationSearch(dense, start, limits, group=8), toy(weights)) for _ in range(2)
    )
    assert first == second


def test_a_round_that_gains_nothing_ends_the_search() -> None:
    dense, start = ModelShape.parse("3x48*4"), ModelShape.parse("3x32*4")
    search = AllocationSearch(dense, start, [Limit("channels", channels, 128)], group=8)
    run(search, toy(np.ones(4)))
    assert search.shape == start
    assert len(search.rounds) <= 1


def test_the_unit_of_a_limit_does_not_matter() -> None:
    tiny = Limit("heads", lambda shape: 1e-10 * heads(shape), -1e-10)
    with pytest.raises(InputError, match="heads: -1e-10 is out of reach"):
        solve(table_of(0), [tiny])


def test_of_several_solutions_the_best_measured_is_kept() -> None:
    """With 24 blocks, solutions of at most 8, 16 and 32 changes differ."""
    weights = np.array([9.0, 1.0] * 12)
    dense, start = ModelShape.parse("3x48*24"), ModelShape.parse("3x32*24")
    search = AllocationSearch(
        dense, start, [Limit("channels", channels, 768)], group=4, heads=0, max_rounds=1
    )
    run(search, toy(weights))
    [found] = search.rounds
    changes = [change for _, change in found.solutions]
    assert len(changes) > 1
    assert -found.gain == min(changes) < max(changes)
    measured = {solution.shape: change for solution, change in found.solutions}
    assert measured[search.shape] == min(changes)
    # toy() gives four sequences 0.9, 1, 1.1 and 1 times a value: their variance is 0.02 / 3.
    assert found.gain_stderr == pytest.approx(found.gain * math.sqrt(0.02 / 3 / 4))


@pytest.mark.parametrize(
    ("distribution", "evaluations", "names"),
    [
        ((0, 1, 0), (13, 37), ["block", "mlp_channels"]),
        ((0, 96, 4), (17, 49), ["block", "mlp_channels", "attention_heads"]),
    ],
)
def test_the_plan_of_an_allocation_by_hand(
    accounting: Accounting,
    distribution: tuple[float, ...],
    evaluations: tuple[int, int],
    names: list[str],
) -> None:
    """The first wave: the start, 2 sizes of the MLPs that are whole, the first and the last, and 4
    of the two others; with heads 1 of each attention. Then 4 solutions, and at most a second round
    of 4 sizes of each MLP, 2 of each attention and 4 solutions.
    """
    settings = SearchSettings.resolved(
        accounting.geometry,
        target_ratio=0.1,
        distribution=distribution,
        strategy="allocation",
        mlp_group_channels=16,
        head_group_channels=16,
    )
    measured, *stages = strategy_of(settings).planned(accounting).stages
    assert [stage.name for stage in (measured, *stages)] == names
    assert (measured.evaluations.min, measured.evaluations.max) == evaluations
    assert (measured.steps.max, measured.ratio) == (0, (0.0, 0.0))
    for stage, parts in zip(stages, (4, 2), strict=False):  # of four layers; one for each round
        assert (stage.steps.min, stage.steps.max) == (0, 4 * parts)
        assert stage.ratio == pytest.approx((0.1, 48 * 146 / 69_168))


def test_sizes_that_each_round_looks_at() -> None:
    """Two steps up and down in the first two rounds, one step later."""
    weights = np.array([8.0, 1.0, 1.0, 8.0])
    dense, start = ModelShape.parse("3x48*4"), ModelShape.parse("3x28*4")
    search = AllocationSearch(
        dense, start, [Limit("channels", channels, 112)], group=4, heads=0, max_rounds=3
    )
    run(search, toy(weights))
    assert len(search.rounds) == 3
    for number, found in enumerate(search.rounds):
        reach = (-8, -4, 4, 8) if number < 2 else (-4, 4)
        for block, sizes in found.table.changes.items():
            own = size_of(found.table.base, block)
            assert set(sizes) == {own} | {min(48, max(0, own + each)) for each in reach}


def test_a_solution_that_measures_worse_is_not_taken() -> None:
    """Each change alone gains, two of them lose half a nat."""
    dense, start = ModelShape.parse("3x48*4"), ModelShape.parse("3x32*4")

    def score(shape: ModelShape) -> ShapeScore:
        moved = [layer.mlp_channels - 32 for layer in shape.layers if layer.mlp_channels != 32]
        return ShapeScore((1.0 - 0.01 * len(moved) if len(moved) < 2 else 1.5,) * 4, 1)

    search = AllocationSearch(
        dense, start, [Limit("channels", channels, 128)], group=4, heads=0, max_rounds=3
    )
    search.observe({shape: score(shape) for shape in search.propose().shapes})
    solved = search.propose()
    assert solved is not None
    search.observe({shape: score(shape) for shape in solved.shapes})
    assert all(change > 0 for _, change in search.rounds[0].solutions)
    assert (search.shape, search.rounds[0].gain, search.done) == (start, 0.0, True)


def test_solutions_are_tried_with_these_bounds() -> None:
    """They decide what is measured, and with it what is found."""
    assert MOVES == (8, 16, 32, None)


def test_of_one_sequence_nobody_knows_what_a_gain_is_worth() -> None:
    dense, start = ModelShape.parse("3x48*4"), ModelShape.parse("3x32*4")
    search = AllocationSearch(
        dense, start, [Limit("channels", channels, 128)], group=4, heads=0, max_rounds=3
    )
    score = toy(np.array([8.0, 1.0, 1.0, 8.0]))
    run(search, lambda shape: ShapeScore(score(shape).nll_per_sequence[:1], 10))
    [found] = search.rounds
    assert found.gain > 0
    assert (found.gain_stderr, found.to_json()["gain_stderr"]) == (None, None)
    [of_one] = score(search.shape).nll_per_sequence[:1]
    assert search.result().score == pytest.approx(of_one / 10)


def test_a_deployable_allocation_finds_its_own_groups() -> None:
    """Every width that is measured or solved for is a multiple of 256, without a word about it."""
    accounting = Accounting(tiny_config("llama", intermediate_size=2048, num_hidden_layers=6))
    settings = SearchSettings.resolved(
        accounting.geometry,
        target_ratio=0.3,
        distribution=(0, 1, 1),
        strategy="allocation",
        shape_constraint="deployable",
    )
    search = strategy_of(settings).measuring(accounting)
    weights = np.array([8.0, 1.0, 4.0, 1.0, 2.0, 8.0])
    asked = [ModelShape.parse(text) for text in run(search, toy(weights))]
    assert {layer.mlp_channels % 256 for shape in asked for layer in shape.layers} == {0}
    assert search.shape != asked[0]
    assert accounting.ratio(search.shape) >= 0.3
    assert search.shape.layers[0].kv_heads
    assert search.shape.layers[-1].mlp_channels
