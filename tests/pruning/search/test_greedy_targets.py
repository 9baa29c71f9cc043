"""Where the stages of a greedy search end, and what it expects still to score, by hand.

Of four layers an attention is 4 % of the model, an MLP 6 %, a KV head and an MLP channel 1 %.
"""

from __future__ import annotations

import pytest

from pruning.search.greedy import GreedySearch
from pruning.search.settings import SearchSettings
from pruning.shape import Removal
from tests.round_sizes import round_sizes


def make_search(
    ratio: float, shares: tuple[float, float, float], channels: int = 1
) -> GreedySearch:
    accounting = round_sizes()
    settings = SearchSettings.resolved(
        accounting.geometry,
        target_ratio=ratio,
        distribution=shares,
        mlp_group_channels=channels,
        head_group_channels=16,
    )
    return GreedySearch(accounting, settings)


def take(search: GreedySearch, *removals: Removal) -> None:
    for removal in removals:
        search.observe({each: 1.0 if each == removal else 2.0 for each in search.propose()})


def test_a_target_that_is_met_to_the_parameter_is_met() -> None:
    search = make_search(0.08, (0, 1, 1))
    take(search, *(Removal("mlp_channels", layer, 5) for layer in range(3)))
    assert not search.done
    assert {candidate.kind for candidate in search.propose()} == {"mlp_channels"}
    take(search, Removal("mlp_channels", 3, 5))
    assert search.ratio == search.stages[1].target_ratio == 0.04
    assert {candidate.kind for candidate in search.propose()} == {"attention_heads"}
    take(search, *(Removal("attention_heads", layer, 3) for layer in range(4)))
    assert search.ratio == 0.08
    assert search.done
    assert (search.stage, search.propose()) == (None, ())


@pytest.mark.parametrize(
    ("ratio", "shares", "channels", "expected"),
    [
        # of 5 % on average to 10 %: 2 steps with 8 candidates
        (0.1, (1, 0, 0), 1, 2 * 8),
        # 3 steps to 11 %, though it will be 15 %: the channels' target is met by then
        (0.11, (11, 0, 0), 1, 3 * 8),
        (0.12, (11, 1, 0), 1, 3 * 8),
        # from 15 % to 16.5 %, 2 channels of 4 layers; from 17 % to 22 %, 5 heads of 4 layers
        (0.22, (11, 5.5, 5.5), 1, 3 * 8 + 2 * 4 + 5 * 4),
        # from 15 % to 18 %, one group of two channels is 2 %
        (0.18, (11, 7, 0), 2, 3 * 8 + 2 * 4),
        # no layer can lose all of its channels: that stage is not counted
        (0.22, (11, 0, 11), 6, 3 * 8 + 7 * 4),
        (0.22, (11, 5.5, 5.5), 6, 3 * 8 + 7 * 4),
    ],
)
def test_what_is_expected_is_worked_out_stage_by_stage(
    ratio: float, shares: tuple[float, float, float], channels: int, expected: int
) -> None:
    """Each step removes what the mean candidate would."""
    assert make_search(ratio, shares, channels).expected_evaluations() == expected


def test_what_is_expected_starts_from_what_is_gone() -> None:
    """An attention is gone, 4 %: to 11 %, 2 steps of (3 x 4 + 4 x 6) / 7 %, to 14.3 %; from there
    to 22 %, 8 channels.
    """
    search = make_search(0.22, (1, 1, 0))
    take(search, Removal("attention", 1, 0))
    assert search.expected_evaluations() == 2 * 7 + 8 * 4
