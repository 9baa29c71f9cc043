"""Rounds of an allocation at their edges: what is proposed, kept and refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from pruning.errors import InputError, ScoringError
from pruning.scoring.score import ShapeScore
from pruning.search.allocation import (
    Limit,
    Sensitivities,
    lowest_cost,
    size_of,
)
from pruning.search.allocation_result import Allocation
from pruning.search.rounds import AllocationSearch
from pruning.shape import ModelShape

DENSE, START = ModelShape.parse("3x48*4"), ModelShape.parse("3x32*4")
Score = Callable[[ModelShape], ShapeScore]


def channels(shape: ModelShape) -> float:
    return float(sum(layer.mlp_channels for layer in shape.layers))


def a_search(
    dense: ModelShape = DENSE, start: ModelShape = START, most: float = 128, max_rounds: int = 3
) -> AllocationSearch:
    limits = [Limit("channels", channels, most)]
    return AllocationSearch(dense, start, limits, group=4, heads=0, max_rounds=max_rounds)


def observe(search: AllocationSearch, score: Score, *, times: int) -> None:
    """At most so many waves: where no change gains, a round ends with its table."""
    for _ in range(times):
        if (wave := search.propose()) is None:
            return
        search.observe({shape: score(shape) for shape in wave.shapes})


def changed(shape: ModelShape) -> int:
    return sum(layer.mlp_channels != 32 for layer in shape.layers)


def test_what_a_search_does_unless_it_is_told() -> None:
    search = AllocationSearch(DENSE, START, [], group=4)
    assert (search.max_rounds, search.heads, search.constraint) == (3, 1, "none")
    assert search.reference == START


def test_no_round_is_an_end() -> None:
    search = a_search(max_rounds=0)
    assert search.done
    assert search.propose() is None


def test_sizes_are_those_of_the_first_table_with_nothing_known() -> None:
    search = a_search()
    expected = search.sizes()
    assert {change for sizes in expected.changes.values() for change in sizes.values()} == {0.0}
    observe(search, lambda shape: ShapeScore((1.0 + changed(shape),) * 2, 1), times=2)
    table = search.rounds[0].table
    assert table.base == expected.base == START
    assert {block: set(sizes) for block, sizes in table.changes.items()} == {
        block: set(sizes) for block, sizes in expected.changes.items()
    }
    own = {sizes[size_of(START, block)] for block, sizes in table.changes.items()}
    others = {
        change
        for block, sizes in table.changes.items()
        for size, change in sizes.items()
        if size != size_of(START, block)
    }
    assert (own, others) == ({0.0}, {1.0})


def test_a_deployable_shape_keeps_the_first_attention_and_the_last_mlp() -> None:
    shape = ModelShape.parse("1x8*3")
    search = AllocationSearch(shape, shape, [], group=8, heads=1, constraint="deployable")
    assert {block: set(sizes) for block, sizes in search.sizes().changes.items()} == {
        (0, "mlp_channels"): {0, 8},
        (1, "kv_heads"): {0, 1},
        (1, "mlp_channels"): {0, 8},
        (2, "kv_heads"): {0, 1},
    }


def test_a_far_target_is_solved_with_as_many_changes_as_it_takes() -> None:
    """24 blocks that must all shrink: 8 and 16 changes are too few."""
    dense = ModelShape.parse("3x48*24")
    search = a_search(dense, dense, most=24 * 40, max_rounds=1)
    observe(search, lambda shape: ShapeScore((24 * 48 - channels(shape),) * 2, 1), times=2)
    [(solution, _)] = search.rounds[0].solutions
    assert solution.shape == ModelShape.parse("3x40*24")


def test_a_target_out_of_reach_is_said() -> None:
    with pytest.raises(InputError, match="channels: 1 is out of reach"):
        observe(a_search(most=1), lambda _: ShapeScore((1.0, 1.0), 1), times=1)


def test_a_start_without_a_finite_score_ends_the_search() -> None:
    with pytest.raises(ScoringError, match="the shape that allocation starts from is NaN"):
        observe(
            a_search(),
            lambda shape: ShapeScore((math.nan if shape == START else 1.0,) * 2, 1),
            times=1,
        )


def test_a_uniform_shape_without_a_finite_score_ends_the_search() -> None:
    """It is measured with the first solutions, which have to beat it."""
    uniform = ModelShape.parse("3x28*4")
    search = AllocationSearch(
        DENSE, START, [Limit("channels", channels, 112)], group=4, heads=0, uniform=uniform
    )

    def score(shape: ModelShape) -> ShapeScore:
        return ShapeScore((math.inf if shape == uniform else 1.0,) * 2, 1)

    observe(search, score, times=1)
    with pytest.raises(ScoringError):
        observe(search, score, times=1)


def test_what_measures_the_same_is_not_taken() -> None:
    """Each change alone gains, two together nothing."""
    search = a_search()
    observe(search, lambda s: ShapeScore((0.9 if changed(s) == 1 else 1.0,) * 2, 1), times=2)
    [found] = search.rounds
    assert {change for _, change in found.solutions} == {0.0}
    assert (search.shape, found.gain, search.done) == (START, 0.0, True)


def test_a_gain_of_one_standard_error_goes_on() -> None:
    """Half a nat on the mean of two sequences, all of it on one: the standard error is half a
    nat, too.
    """
    search = a_search()

    def score(shape: ModelShape) -> ShapeScore:
        return ShapeScore((2.0, 2.0 if shape == START else 1.0), 1)

    observe(search, score, times=2)
    assert (search.rounds[0].gain, search.rounds[0].gain_stderr) == (0.5, 0.5)
    assert not search.done


def test_what_is_not_finite_is_null_in_the_file() -> None:
    narrow = ModelShape.parse("3x28 3x32*3")

    def score(shape: ModelShape) -> ShapeScore:
        return ShapeScore((math.nan if shape == narrow else 1.0 + changed(shape),) * 2, 1)

    search = a_search()
    observe(search, score, times=2)
    found = search.rounds[0].to_json()
    changes = {
        (each["layer"], each["size"]): each["kl"] for each in found["changes"] if each["layer"] < 2
    }
    assert changes == {(0, 24): 1.0, (0, 28): None, (0, 32): 0.0, (0, 36): 1.0, (0, 40): 1.0} | {
        (1, size): float(size != 32) for size in (24, 28, 32, 36, 40)
    }


def test_a_limit_forgives_sums_of_floats_and_no_more() -> None:
    for most in (5.0, -5.0):
        limit = Limit("cost", channels, most)
        assert limit.is_kept(most)
        assert limit.is_kept(most + 2e-9)
        assert not limit.is_kept(most + 1e-7)


def test_a_block_without_any_finite_score_has_no_smallest_size() -> None:
    table = Sensitivities(START, {(0, "mlp_channels"): {24: math.nan, 32: math.nan}})
    assert lowest_cost(table, Limit("channels", channels, 128)) == math.inf


def test_shapes_that_were_scored_are_read_from_the_rounds() -> None:
    start, solved = ModelShape.parse("3x28*4"), "3x24 3x36 3x32*2"
    change = {"layer": 1, "unit": "mlp_channels", "size": 24, "kl": 0.5}
    rounds = ({"base": START.text, "changes": [change], "solutions": [{"shape": solved}]},)
    allocation = Allocation(start, START, 1.0, 0.5, 4, rounds)
    assert {shape.text for shape in allocation.measured()} == {
        "3x28*4",
        "3x32*4",
        "3x32 3x24 3x32*2",
        solved,
    }
