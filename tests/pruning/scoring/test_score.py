"""Figures that are made of scores; sums have the same bits under every Python."""

from __future__ import annotations

import math
import statistics

import pytest

from pruning.importance.block_influence import BlockInfluence, LayerSimilarity
from pruning.scoring.score import BatchScore, ShapeScore, exact_sum, perplexity

TENTHS = (0.1,) * 10
"""Added one after the other they come to 0.9999999999999999, from Python 3.12 on to 1."""


def left_to_right(values: tuple[float, ...]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total


def test_the_mean_is_rounded_once() -> None:
    assert left_to_right(TENTHS) != 1.0
    assert ShapeScore(TENTHS, 1).nll == 0.1
    cancelling = (1e16, 1.0, -1e16, 1.0)
    assert ShapeScore(cancelling, 1).nll == 2.0 / 4 != left_to_right(cancelling) / 4


def test_a_part_of_a_set_is_the_mean_of_its_own_sequences() -> None:
    whole = ShapeScore((1.0, 20.0, 3.0, 40.0), 2)
    assert whole.of_sequences((0, 2)).nll == (1.0 + 3.0) / 4
    assert whole.of_sequences((1, 3)).nll == (20.0 + 40.0) / 4


def test_block_influence_is_rounded_once() -> None:
    batches = [LayerSimilarity((value,), 1) for value in TENTHS]
    assert BlockInfluence.of(batches).values == (1 - 1.0 / 10,)


@pytest.mark.parametrize(
    ("values", "expected"),
    [((1.0, math.inf), math.inf), ((1.0, math.nan), math.nan), ((math.inf, -math.inf), math.nan)],
)
def test_what_is_not_finite_stays_so(values: tuple[float, ...], expected: float) -> None:
    assert str(exact_sum(values)) == str(expected)


def test_batches_of_a_set_are_joined_in_their_order() -> None:
    batches = [BatchScore((3.0, 1.0), 7), BatchScore((2.0,), 7), BatchScore((4.0, 0.5), 7)]
    assert ShapeScore.of(iter(batches)) == ShapeScore((3.0, 1.0, 2.0, 4.0, 0.5), 7)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ((10.0, 26.0, 30.0), (9.0, 21.0, 27.0)),
        ((4.0, 1.0), (1.0, 3.0)),
        ((5.0, 6.0, 7.0, 8.0), (1.0, 2.0, 3.0, 4.0)),
    ],
)
def test_the_error_of_a_difference_is_that_of_a_mean_of_pairs(
    mine: tuple[float, ...], theirs: tuple[float, ...]
) -> None:
    """Per token, of four in each sequence; nothing where all sequences differ alike."""
    pairs = [(one - other) / 4 for one, other in zip(mine, theirs, strict=True)]
    found = ShapeScore(mine, 4).stderr_of_difference(ShapeScore(theirs, 4))
    assert found == pytest.approx(statistics.stdev(pairs) / math.sqrt(len(pairs)))


@pytest.mark.parametrize("mine", [(2.0,), (2.0, math.inf, 1.0), (math.nan, 2.0, 1.0)])
def test_no_error_of_one_sequence_or_of_what_is_not_finite(mine: tuple[float, ...]) -> None:
    whole = ShapeScore((1.0, 2.0, 4.0)[: len(mine)], 4)
    assert ShapeScore(mine, 4).stderr_of_difference(whole) is None


@pytest.mark.parametrize(
    ("nll", "expected"),
    [
        (0.0, 1.0),
        (2.5, 12.182493960703473),
        (699.9999, math.exp(699.9999)),
        (700.0, None),
        (709.0, None),
        (1000.0, None),
        (math.inf, None),
        (-math.inf, None),
        (math.nan, None),
    ],
)
def test_perplexity_where_it_is_a_finite_number(nll: float, expected: float | None) -> None:
    assert perplexity(nll) == expected
