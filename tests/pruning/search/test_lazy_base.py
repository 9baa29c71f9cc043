"""The score of the shape before a step, which a lazy selection compares with."""

from __future__ import annotations

import pytest

from pruning.search.lazy import Lazy
from pruning.search.settings import LazySettings
from pruning.shape import Removal

SETTINGS = LazySettings(wave_size=2, tolerance=0.125, rescore_every=4, near_layers=0)
FIRST, SECOND, THIRD = (Removal("mlp", layer, 0) for layer in range(3))
CHANGES = {SECOND: 0.5, THIRD: 0.75}


@pytest.mark.parametrize(("base_nll", "first"), [(2.0, (FIRST,)), (None, (None, FIRST))])
def test_it_is_asked_for_only_where_it_is_not_known(
    base_nll: float | None, first: tuple[Removal | None, ...]
) -> None:
    selection = Lazy((FIRST, SECOND, THIRD), 1, CHANGES, base_nll, SETTINGS)
    assert selection.wave({}) == first


@pytest.mark.parametrize("base_nll", [2.0, None])
@pytest.mark.parametrize(("score", "second"), [(2.25, ()), (2.375, (SECOND, THIRD))])
def test_a_new_change_is_what_a_score_is_above_it(
    base_nll: float | None, score: float, second: tuple[Removal, ...]
) -> None:
    """By 0.25 or 0.375: a last change of 0.5 is at most 0.125 behind the latter alone."""
    selection = Lazy((FIRST, SECOND, THIRD), 1, CHANGES, base_nll, SETTINGS)
    base: dict[Removal | None, float] = {} if base_nll else {None: 2.0}
    assert selection.wave({**base, FIRST: score}) == second
