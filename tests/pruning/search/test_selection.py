"""The contract of every selection, on any table of scores: it ends, follows from the scores alone,
and asks for nothing twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.scoring.score import BatchScore, ShapeScore
from pruning.search.lazy import Lazy
from pruning.search.selection import Ask, Exhaustive, Selection
from pruning.search.settings import LazySettings
from pruning.shape import Removal

Table = Mapping[Ask, BatchScore]
Make = Callable[[tuple[Removal, ...], int], Selection]


@dataclass(frozen=True)
class InWaves:
    """Two candidates at a time, until two bring nothing better: leaves candidates out."""

    candidates: tuple[Removal, ...]
    num_batches: int

    def next(self, scores: Table) -> tuple[Ask, ...]:
        best = math.inf
        for start in range(0, len(self.candidates), 2):
            wave = self.candidates[start : start + 2]
            asks = [(candidate, batch) for candidate in wave for batch in range(self.num_batches)]
            missing = tuple(ask for ask in asks if ask not in scores)
            if missing:
                return missing
            nll = min(mean(scores, candidate, self.num_batches) for candidate in wave)
            if not nll < best:
                break
            best = nll
        return ()


@dataclass(frozen=True)
class Halved:
    """All on the first batch, the better half on all others: leaves text out."""

    candidates: tuple[Removal, ...]
    num_batches: int

    def next(self, scores: Table) -> tuple[Ask, ...]:
        first = tuple(
            (candidate, 0) for candidate in self.candidates if (candidate, 0) not in scores
        )
        if first:
            return first
        ranked = sorted(self.candidates, key=lambda candidate: order(mean(scores, candidate, 1)))
        return tuple(
            (candidate, batch)
            for candidate in ranked[: (len(ranked) + 1) // 2]
            for batch in range(1, self.num_batches)
            if (candidate, batch) not in scores
        )


def lazily(known: Sequence[float], **settings: float) -> Make:
    """A lazy selection that knows a change of the first candidates."""

    def make(candidates: tuple[Removal, ...], num_batches: int) -> Lazy:
        changes = dict(zip(candidates, known, strict=False))
        lazy = replace(LAZY, **settings)  # type: ignore[arg-type]
        return Lazy(candidates, num_batches, changes, 1.5 if known else None, lazy)

    return make


LAZY = LazySettings(wave_size=2, tolerance=0.25, rescore_every=10, near_layers=0)
SELECTIONS: list[Make] = [
    Exhaustive,
    InWaves,
    Halved,
    lazily([]),
    lazily([0.5, -0.5, 1.0, 0.5, 0.25]),
    lazily([3.0, 2.0, 1.0, 0.5, -1.0, -2.0, -3.0], wave_size=1),
    lazily([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5], wave_size=3, tolerance=math.inf),
]


def mean(scores: Table, candidate: Removal, num_batches: int) -> float:
    return ShapeScore.of(scores[candidate, batch] for batch in range(num_batches)).nll


def order(nll: float) -> float:
    return nll if math.isfinite(nll) else math.inf


@st.composite
def tables(draw: st.DrawFn) -> tuple[tuple[Removal, ...], int, Table]:
    """Candidates, batches and every score, NaN and infinity among them; ties are likely."""
    candidates = tuple(Removal("mlp", layer, 0) for layer in range(draw(st.integers(1, 7))))
    num_batches = draw(st.integers(1, 4))
    nlls = st.sampled_from([1.0, 2.0, 2.5, 9.0, math.nan, math.inf, -math.inf])
    return (
        candidates,
        num_batches,
        {
            (candidate, batch): BatchScore((draw(nlls),), 3)
            for candidate in (None, *candidates)
            for batch in range(num_batches)
        },
    )


def asked(selection: Selection, table: Table) -> list[tuple[Ask, ...]]:
    scores: dict[Ask, BatchScore] = {}
    rounds = []
    while asks := selection.next(scores):
        assert len(set(asks)) == len(asks)
        assert not set(asks) & set(scores), "asked for before"
        assert set(asks) <= set(table)
        rounds.append(asks)
        scores |= {ask: table[ask] for ask in asks}
        backwards = dict(reversed(scores.items()))
        assert selection.next(scores) == selection.next(backwards), "in whatever order they came"
    return rounds


@pytest.mark.parametrize("make", SELECTIONS)
@given(drawn=tables())
def test_it_ends_and_asks_for_nothing_twice(
    make: Make, drawn: tuple[tuple[Removal, ...], int, Table]
) -> None:
    candidates, num_batches, table = drawn
    rounds = asked(make(candidates, num_batches), table)
    assert rounds == asked(make(candidates, num_batches), table), "the same scores, the same way"
    assert sum(map(len, rounds)) <= len(table)


@given(drawn=tables())
def test_exhaustive_asks_for_everything_at_once(
    drawn: tuple[tuple[Removal, ...], int, Table],
) -> None:
    candidates, num_batches, table = drawn
    everything = [(candidate, batch) for batch in range(num_batches) for candidate in candidates]
    assert asked(Exhaustive(candidates, num_batches), table) == [tuple(everything)]


def test_exhaustive_asks_for_what_is_missing() -> None:
    first, second = (Removal("mlp", layer, 0) for layer in range(2))
    selection = Exhaustive((first, second), 2)
    scores = {(first, 1): BatchScore((1.0,), 3), (second, 0): BatchScore((1.0,), 3)}
    assert selection.next(scores) == ((first, 0), (second, 1))
