"""Lazy selection, by hand and against the exhaustive search."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from pruning.costs.accounting import Accounting
from pruning.scoring.score import BatchScore
from pruning.search.greedy import GreedySearch
from pruning.search.lazy import Lazy, LazySearch
from pruning.search.settings import LazySettings, SearchSettings
from pruning.search.step import Step
from pruning.search.strategies import strategy_of
from pruning.shape import ModelShape, Removal
from tests.conftest import tiny_config

LAZY = LazySettings(wave_size=2, tolerance=0.01, rescore_every=4, near_layers=0)
BLOCKS = tuple(Removal("mlp", layer, 0) for layer in range(6))


@pytest.fixture(scope="module")
def accounting() -> Accounting:
    """Of eight layers, so that some are far from others."""
    config = tiny_config("llama")
    config.num_hidden_layers = 8
    return Accounting(config)


def settings(accounting: Accounting, lazy: LazySettings | None) -> SearchSettings:
    return SearchSettings.resolved(
        accounting.geometry,
        target_ratio=0.4,
        distribution=[40, 40, 20],
        mlp_group_channels=8,
        lazy=lazy,
    )


def nll(shape: ModelShape, seed: int = 0) -> float:
    """A sum over blocks, and a part that any other shape has otherwise."""
    cost = sum(
        (3 - layer.kv_heads) * 0.02 * (index + 1) + (48 - layer.mlp_channels) * 0.002 * (9 - index)
        for index, layer in enumerate(shape.layers)
    )
    return 2 + cost + random.Random(f"{shape.text} {seed}").random() * 0.05


def scores_of(search: GreedySearch, seed: int = 0) -> dict[Removal | None, float]:
    """What the selection of the next step asks for."""
    if not isinstance(search, LazySearch):
        return {each: nll(search.shape.without(each), seed) for each in search.propose()}
    found: dict[Removal | None, float] = {}
    while wave := search.selection(1).wave(found):
        found |= {each: nll(search.shape.changed(each), seed) for each in wave}
    return found


def searched(accounting: Accounting, lazy: LazySettings | None, seed: int = 0) -> GreedySearch:
    kind = LazySearch if lazy else GreedySearch
    search = kind(accounting, settings(accounting, lazy))
    while not search.done:
        search.observe(scores_of(search, seed))
    return search


def counts(search: GreedySearch) -> list[int]:
    return [len(step.candidates) for step in search.steps]


def removals(search: GreedySearch) -> list[Removal]:
    return [step.removal for step in search.steps]


def lazy_of(changes: list[float], **options: float) -> Lazy:
    """Of `BLOCKS`, whose base scored 2."""
    given = replace(LAZY, **options)  # type: ignore[arg-type]
    return Lazy(BLOCKS, 1, dict(zip(BLOCKS, changes, strict=False)), 2.0, given)


def waves(selection: Lazy, fresh: dict[int, float]) -> list[list[int]]:
    """Layers of each wave, where the candidates of these layers score so much above the base."""
    found: dict[Removal | None, float] = {}
    asked = []
    while wave := selection.wave(found):
        asked.append([each.layer for each in wave if each])
        found |= {each: 2.0 + fresh[each.layer] for each in wave if each}
    return asked


def test_the_order_is_that_of_the_last_changes() -> None:
    selection = lazy_of([0.5, 0.1, 0.4, 0.2, 0.3, 0.1], tolerance=9.0)
    assert waves(selection, dict.fromkeys(range(6), 0.0)) == [[1, 5], [3, 4], [2, 0]]


@pytest.mark.parametrize(
    ("fresh", "expected"),
    [
        ({1: 0.125, 5: 0.5}, [[1, 5]]),
        ({1: 0.5, 5: 0.5, 3: 0.125, 4: 0.5}, [[1, 5], [3, 4]]),
        ({1: 0.25, 5: 0.5, 3: 0.5, 4: 0.5}, [[1, 5], [3, 4]]),
        ({1: math.nan, 5: math.inf, 3: math.nan, 4: 0.0}, [[1, 5], [3, 4]]),
        ({1: -math.inf, 5: 0.0}, [[1, 5]]),
        ({1: -math.inf, 5: 0.5, 3: 0.125, 4: 0.5}, [[1, 5], [3, 4]]),
    ],
)
def test_it_stops_where_the_next_change_is_worse_than_the_best_new_one(
    fresh: dict[int, float], expected: list[list[int]]
) -> None:
    """By more than the tolerance; scores that are not finite stop nothing."""
    selection = lazy_of([0.625, 0.125, 0.625, 0.375, 0.5, 0.125], tolerance=0.125)
    assert waves(selection, fresh) == expected


def test_candidates_without_a_change_come_first_and_all_together() -> None:
    selection = lazy_of([0.1, 0.2, 0.3])
    assert waves(selection, dict.fromkeys(range(6), 0.0)) == [[3, 4, 5]]
    assert waves(selection, dict.fromkeys(range(6), 0.15)) == [[3, 4, 5], [0, 1]]


def test_the_base_is_asked_for_where_it_has_no_score() -> None:
    selection = Lazy(BLOCKS, 2, {}, None, LAZY)
    asks = selection.next({})
    assert asks == tuple((each, batch) for batch in (0, 1) for each in (None, *BLOCKS))


def test_it_asks_for_what_is_missing_of_a_wave() -> None:
    selection = Lazy(BLOCKS[:1], 2, {}, None, LAZY)
    score = BatchScore((1.0,), 3)
    assert selection.next({(None, 1): score, (BLOCKS[0], 0): score}) == ((None, 0), (BLOCKS[0], 1))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "lazy", [replace(LAZY, tolerance=math.inf), replace(LAZY, rescore_every=1)], ids=str
)
def test_it_can_be_as_exhaustive(accounting: Accounting, lazy: LazySettings, seed: int) -> None:
    """The same steps with the same candidates and scores, to the bit."""
    exact, found = searched(accounting, None, seed), searched(accounting, lazy, seed)
    assert len(exact.steps) > 10
    assert [replace(step, base_nll=None, unscored=None) for step in found.steps] == exact.steps
    assert all(step.unscored == () for step in found.steps)


def test_it_scores_fewer(accounting: Accounting) -> None:
    exact, found = searched(accounting, None), searched(accounting, LAZY)
    assert sum(counts(found)) < 0.6 * sum(counts(exact))
    for step in found.steps:
        scored = [candidate for candidate, _ in step.candidates]
        left_out = [candidate for candidate, _ in step.unscored or ()]
        assert step.removal in scored
        assert not set(scored) & set(left_out)
    with_all = [step.stage for step in found.steps if not step.unscored]
    assert set(with_all) == {"block", "mlp_channels", "attention_heads"}


def test_all_are_scored_at_the_first_step_of_a_stage_and_every_few_steps(
    accounting: Accounting,
) -> None:
    found = searched(accounting, replace(LAZY, tolerance=0.0, rescore_every=3))
    number: dict[str, int] = {}
    for step in found.steps:
        place = number[step.stage] = number.get(step.stage, -1) + 1
        assert step.unscored is not None
        assert (step.base_nll is not None) == (place == 0)
        if place % 3 == 0:
            assert step.unscored == ()
    assert sum(len(step.unscored or ()) for step in found.steps) > 50
    assert max(number.values()) >= 6


def test_the_last_known_change_is_that_of_the_step_that_scored_it(accounting: Accounting) -> None:
    """Followed by hand through a whole search, as are the candidates close to a removal."""
    found = searched(accounting, replace(LAZY, near_layers=1))
    assert len({len(step.unscored or ()) for step in found.steps}) > 3
    shape, previous = accounting.dense, math.nan
    changes: dict[Removal, float] = {}
    stage, number = "", 0
    for step in found.steps:
        if step.stage != stage:
            stage, number, changes = step.stage, 0, {}
            previous = nll(shape)
        if number % LAZY.rescore_every == 0:
            changes = {}
        scored = dict(step.candidates)
        assert dict(step.unscored or ()) == {
            candidate: change for candidate, change in changes.items() if candidate not in scored
        }
        changes |= {candidate: score - previous for candidate, score in scored.items()}
        changes = {
            candidate: change
            for candidate, change in changes.items()
            if abs(candidate.layer - step.removal.layer) > 1
        }
        shape, previous, number = step.shape, step.nll, number + 1


def test_replaying_what_was_scored_takes_the_same_steps(accounting: Accounting) -> None:
    found = searched(accounting, LAZY)
    again = LazySearch(accounting, found.settings)
    for step in found.steps:
        recorded = as_recorded(step)
        assert again.decides(recorded)
        again.observe(recorded)
    assert again.steps == found.steps


def test_other_scores_than_it_asks_for_decide_nothing(accounting: Accounting) -> None:
    found = searched(accounting, LAZY)
    again, refused = LazySearch(accounting, found.settings), 0
    for step in found.steps:
        recorded = as_recorded(step)
        last = step.candidates[-1][0]
        fewer = {each: score for each, score in recorded.items() if each != last}
        assert not again.decides(fewer)
        with pytest.raises(KeyError, match=f"step {len(again.steps) + 1}"):
            again.observe(fewer)
        if step.unscored:
            assert not again.decides(recorded | {step.unscored[0][0]: 9.0})
            refused += 1
        again.observe(recorded)
    assert refused > 5


def as_recorded(step: Step) -> dict[Removal | None, float]:
    base = {} if step.base_nll is None else {None: step.base_nll}
    return {**base, **dict(step.candidates)}


def test_a_candidate_without_a_finite_score_is_scored_again(accounting: Accounting) -> None:
    search = LazySearch(accounting, settings(accounting, replace(LAZY, tolerance=0.0)))
    first = scores_of(search)
    spoilt = max((each for each in first if each), key=lambda each: each.layer)
    search.observe(first | {spoilt: math.nan})
    assert spoilt in scores_of(search)
    assert spoilt not in dict(search.observe(scores_of(search)).unscored or ())


def test_it_is_told_apart_and_planned(accounting: Accounting) -> None:
    lazy, exact = (strategy_of(settings(accounting, each)) for each in (LAZY, None))
    assert (lazy.label, exact.label) == ("40:40:20 lazy", "40:40:20")
    assert lazy.identity() == exact.identity() | {
        "search.selection": "lazy",
        "search.lazy.wave_size": 2,
        "search.lazy.tolerance": 0.01,
        "search.lazy.rescore_every": 4,
        "search.lazy.near_layers": 0,
    }
    assert type(lazy.search(accounting, {})) is LazySearch
    assert type(exact.search(accounting, {})) is GreedySearch
    search, plan = searched(accounting, LAZY), lazy.planned(accounting)
    for mine, most in zip(plan.stages, exact.planned(accounting).stages, strict=True):
        taken = [len(step.candidates) for step in search.steps if step.stage == mine.name]
        assert mine.evaluations.min <= sum(taken) <= mine.evaluations.max == most.evaluations.max
        assert mine.evaluations.min == mine.steps.min == most.steps.min
    assert plan.to_json()["at_most"] is True
    assert "at_most" not in exact.planned(accounting).to_json()


def test_what_is_still_expected_follows_what_was_left_out(accounting: Accounting) -> None:
    search = LazySearch(accounting, settings(accounting, LAZY))
    exact = GreedySearch(accounting, search.settings)
    assert search.expected_evaluations() == exact.expected_evaluations()
    for _ in range(2):
        exact.shape = search.observe(scores_of(search)).shape
    scored, left_out = len(search.steps[1].candidates), len(search.steps[1].unscored or ())
    assert left_out
    expected = exact.expected_evaluations() * scored / (scored + left_out)
    assert search.expected_evaluations() == math.ceil(expected)
