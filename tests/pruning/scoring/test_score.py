"""Sums of scores have the same bits under every Python."""

from __future__ import annotations

import math

import pytest

from pruning.importance.block_influence import BlockInfluence, LayerSimilarity
from pruning.scoring.score import ShapeScore, exact_sum

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
