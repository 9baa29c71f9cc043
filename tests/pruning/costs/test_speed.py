"""What is measured, and a figure over rounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pruning.costs.speed import SpeedSettings, Spread
from pruning.errors import InputError

COUNTS = ("batch_size", "prompt_tokens", "new_tokens", "rounds")
SETTINGS = SpeedSettings(batch_size=2, prompt_tokens=6, new_tokens=4, rounds=2)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: 0; expected at least 1"):
        replace(SETTINGS, **{name: 0})


def test_one_of_each_is_enough() -> None:
    least = SpeedSettings(1, 1, 1, 1)
    assert [getattr(least, name) for name in COUNTS] == [1] * 4
    assert least.seed == 0


def test_a_context_holds_the_prompt_and_what_comes_after_it() -> None:
    assert SETTINGS.context_tokens == 10


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    assert Spread.of([4.0, 1.0, 2.0, 9.0]) == Spread(3, 1, 9)
