"""What follows from the settings of a training alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.pruning.recovery.recoveries import SETTINGS


@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size", "expected"), [(4, 4, 1), (5, 4, 2), (6, 2, 3), (1, 4, 1)]
)
def test_the_last_part_of_an_update_may_be_smaller(
    batch_size: int, micro_batch_size: int, expected: int
) -> None:
    settings = replace(SETTINGS, batch_size=batch_size, micro_batch_size=micro_batch_size)
    assert settings.num_parts == expected


@pytest.mark.parametrize(
    ("rank", "alpha", "scale", "trained"),
    [
        (4, 6.0, 1.5, "adapters of rank 4"),
        (16, 4.0, 0.25, "adapters of rank 16"),
        (None, 6.0, 1.0, "whole matrices"),
    ],
)
def test_what_is_trained_and_what_it_is_multiplied_by(
    rank: int | None, alpha: float, scale: float, trained: str
) -> None:
    settings = replace(SETTINGS, rank=rank, alpha=alpha)
    assert (settings.scale, settings.trained) == (scale, trained)


@pytest.mark.parametrize(
    ("warmup_steps", "expected"),
    [
        (2, [4.0, 8.0, 6.0, 4.0, 2.0]),
        (0, [8 * 5 / 6, 8 * 4 / 6, 8 * 3 / 6, 8 * 2 / 6, 8 / 6]),
        (5, [1.6, 3.2, 4.8, 6.4, 8.0]),
    ],
)
def test_rates_rise_to_the_highest_and_fall_to_nothing_after_the_last(
    warmup_steps: int, expected: list[float]
) -> None:
    settings = replace(SETTINGS, steps=5, warmup_steps=warmup_steps, learning_rate=8.0)
    assert [settings.rate_at(step) for step in range(1, 6)] == pytest.approx(expected)
