"""Rounds whose first table is around the uniform shape of another target."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pruning.costs.accounting import Accounting
from pruning.errors import InputError, ScoringError
from pruning.scoring.score import ShapeScore
from pruning.search.allocation import Limit
from pruning.search.rounds import AllocationSearch
from pruning.search.settings import SearchSettings
from pruning.search.strategies import strategy_of
from pruning.shape import ModelShape
from tests.conftest import tiny_config

DENSE, TABLE = ModelShape.parse("3x48*12"), ModelShape.parse("3x40*12")
WEIGHTS = np.array([9.0, 1.0, 4.0] * 4)


def channels(shape: ModelShape) -> float:
    return float(sum(layer.mlp_channels for layer in shape.layers))


def score(shape: ModelShape, weights: np.ndarray = WEIGHTS) -> ShapeScore:
    gone = np.array([48 - layer.mlp_channels for layer in shape.layers]) / 48
    value = 1 + float((weights * gone**2).sum())
    return ShapeScore((value * 0.9, value, value * 1.1, value), 1)


def search_for(width: int, *, max_rounds: int = 1, most: float | None = None) -> AllocationSearch:
    """To so many channels in each of twelve layers, from a table at 40."""
    return AllocationSearch(
        DENSE,
        TABLE,
        [Limit("channels", channels, 12 * width if most is None else most)],
        group=4,
        heads=0,
        max_rounds=max_rounds,
        uniform=ModelShape.parse(f"3x{width}*12"),
    )


def waves(search: AllocationSearch, weights: np.ndarray = WEIGHTS) -> list[list[ModelShape]]:
    asked = []
    while (wave := search.propose()) is not None:
        asked.append(list(wave.shapes))
        search.observe({shape: score(shape, weights) for shape in wave.shapes})
    return asked


@pytest.mark.parametrize("width", [36, 44])
def test_targets_ask_for_the_same_table_and_solutions_of_their_own(width: int) -> None:
    table, own = waves(search_for(width))
    other, _ = waves(search_for(38))
    assert table == other
    assert table[0] == TABLE
    assert len(table) == 1 + 12 * 4
    assert own[0] == ModelShape.parse(f"3x{width}*12")
    assert 2 <= len(own) <= 5
    assert all(channels(shape) <= 12 * width for shape in own)


@pytest.mark.parametrize("width", [36, 44])
def test_solutions_have_to_beat_the_uniform_shape_of_the_target(width: int) -> None:
    search = search_for(width)
    waves(search)
    [found], result = search.rounds, search.result()
    uniform = ModelShape.parse(f"3x{width}*12")
    assert (result.start, result.start_score) == (uniform, score(uniform).nll)
    assert result.shape == search.shape != uniform
    assert result.score == found.score == score(search.shape).nll
    assert found.gain == pytest.approx(result.start_score - result.score)
    difference = score(search.shape).stderr_of_difference(score(uniform))
    assert found.gain_stderr == difference
    assert found.base_score == score(TABLE).nll
    assert all(kl == score(each.shape).nll - found.base_score for each, kl in found.solutions)


def test_the_uniform_shape_is_taken_where_no_solution_is_better() -> None:
    """Every solution is spoiled, and the base, whose score is better, is not of this target."""
    search = search_for(36)
    uniform = ModelShape.parse("3x36*12")
    while (wave := search.propose()) is not None:
        spoiled = {shape: ShapeScore((9.0,) * 4, 1) for shape in wave.shapes}
        known = {shape: score(shape) for shape in (TABLE, uniform) if shape in wave.shapes}
        table = {} if uniform in wave.shapes else {each: score(each) for each in wave.shapes}
        search.observe(spoiled | table | known)
    assert search.shape == uniform
    assert search.result().score == score(uniform).nll > score(TABLE).nll
    assert search.rounds[0].gain == 0


def test_few_changes_do_not_reach_a_far_target() -> None:
    """Nor are they needed: what takes more than 8 is solved with more."""
    search = search_for(33)
    _, own = waves(search)
    [found] = search.rounds
    changed = [
        sum(a != b for a, b in zip(each.shape.layers, TABLE.layers, strict=True))
        for each, _ in found.solutions
    ]
    assert min(changed) > 8
    assert len(own) == 1 + len(found.solutions)


def test_a_second_round_is_around_the_solution() -> None:
    search = search_for(36, max_rounds=2)
    waves(search)
    first, second = search.rounds
    assert second.table.base == first.shape
    assert second.base_score == first.score
    assert second.score == pytest.approx(second.base_score - second.gain)
    assert search.result().start == ModelShape.parse("3x36*12")


def test_a_target_out_of_reach_of_the_table() -> None:
    sizes = search_for(36).sizes()
    assert {min(each) for each in sizes.changes.values()} == {32}
    with pytest.raises(InputError, match="channels: 360 is out of reach"):
        waves(search_for(36, most=360))
    accounting = Accounting(tiny_config("llama"))
    settings = SearchSettings.resolved(
        accounting.geometry, target_ratio=0.15, distribution=(0, 1, 0), strategy="allocation",
        mlp_group_channels=4, table_ratio=0.02,
    )  # fmt: skip
    [problem] = strategy_of(settings).problems(accounting)
    assert problem.startswith("search.table_ratio: 0.02; what is measured around")


def test_a_uniform_shape_without_a_finite_score() -> None:
    search = search_for(36)
    table = search.propose()
    assert table is not None
    search.observe({shape: score(shape) for shape in table.shapes})
    own = search.propose()
    assert own is not None
    with pytest.raises(ScoringError):
        search.observe({shape: ShapeScore((math.nan,) * 4, 1) for shape in own.shapes})


@pytest.mark.parametrize(("table", "rounds"), [(None, 2), (0.1, 1)])
def test_one_round_where_the_table_is_shared(table: float | None, rounds: int) -> None:
    geometry = Accounting(tiny_config("llama")).geometry
    settings = SearchSettings.resolved(
        geometry, target_ratio=0.1, strategy="allocation", table_ratio=table
    )
    assert settings.rounds == rounds
    identity = strategy_of(settings).identity()
    assert identity.get("search.table_ratio") == table
    assert ("search.table_ratio" in identity) == (table is not None)
