"""Searches along a path that is known: where they end, what is left of them, and in which order a
path goes through the blocks.
"""

from __future__ import annotations

from typing import Any

import pytest

from pruning.costs.accounting import Accounting
from pruning.search.fixed import FixedSearch, PathSearch, path_between
from pruning.search.settings import SearchSettings
from pruning.shape import ModelShape, Removal
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def accounting() -> Accounting:
    """Four layers of three KV heads and 48 MLP channels."""
    return Accounting(tiny_config("llama"))


def settings_of(accounting: Accounting, ratio: float, *distribution: float) -> SearchSettings:
    changes: dict[str, Any] = {"mlp_group_channels": 16, "head_group_channels": 16}
    return SearchSettings.resolved(
        accounting.geometry, target_ratio=ratio, distribution=distribution, **changes
    )


def test_a_target_that_is_met_exactly_is_met(accounting: Accounting) -> None:
    path = [[Removal("attention", layer, 0)] for layer in range(4)]
    exact = accounting.ratio(ModelShape.parse("0x48*2 3x48*2"))
    for ratio, left in ((exact, 2), (exact + 1e-9, 3)):
        search = FixedSearch(accounting, settings_of(accounting, ratio, 1, 0, 0), path)
        assert search.expected_evaluations() == left
        assert search.foreseen() == tuple(removal for [removal] in path[:left])


def test_every_step_of_a_group_is_of_the_stage_with_a_share(accounting: Accounting) -> None:
    """One head would do; the group has two, and goes whole."""
    path = [[Removal("attention_heads", layer + near, 2) for near in (0, 1)] for layer in (0, 2)]
    search = FixedSearch(accounting, settings_of(accounting, 0.01, 0, 0, 1), path)
    while not search.done:
        search.observe(dict.fromkeys(search.propose(), 1.0))
    assert [step.stage for step in search.steps] == ["attention_heads"] * 2
    assert search.shape == ModelShape.parse("2x48*2 3x48*2")


@pytest.mark.parametrize(("scored_on", "token_set"), [(None, "width"), ("block", "block")])
def test_a_path_is_gone_to_its_end(accounting: Accounting, scored_on: Any, token_set: str) -> None:
    """Beyond the target, which the first step meets; each step is of its own stage."""
    path = [
        Removal("mlp_channels", 1, 32),
        Removal("attention_heads", 2, 1),
        Removal("mlp_channels", 1, 16),
    ]
    settings = settings_of(accounting, 0.01, 0, 1, 1)
    search = PathSearch(accounting, settings, path, scored_on=scored_on)
    seen = []
    while search.stage is not None:
        seen.append((search.expected_evaluations(), search.stage.name, search.stage.token_set))
        assert search.foreseen() == tuple(path[len(search.steps) :])
        search.observe(dict.fromkeys(search.propose(), 1.0))
    assert seen == [
        (3, "mlp_channels", token_set),
        (2, "attention_heads", token_set),
        (1, "mlp_channels", token_set),
    ]
    assert search.expected_evaluations() == 0
    assert search.shape == ModelShape.parse("3x48 3x16 1x48 3x48")


def test_layers_that_go_one_after_the_other_are_far_apart() -> None:
    """By the fractions of multiples of the golden ratio, 0, 0.62, 0.24, 0.85, 0.47, 0.09, 0.71 and
    0.33: the largest goes first.
    """
    path = path_between(ModelShape.parse("3x48*8"), ModelShape.parse("3x32*8"), channels=16)
    assert [removal.layer for removal in path] == [3, 6, 1, 4, 7, 2, 5, 0]


def test_parts_of_a_block_go_at_even_times_and_heads_before_channels() -> None:
    """A part goes where its share of its block is of the whole path, a little earlier in layers of
    a larger fraction: layer 2, of 0.24, at 0.38 and 0.88; layer 0 at a half and at the end.
    """
    dense, shape = ModelShape.parse("3x48*3"), ModelShape.parse("1x44 3x48 3x40")
    assert path_between(dense, shape, channels=4) == (
        Removal("mlp_channels", 2, 44),
        Removal("attention_heads", 0, 2),
        Removal("mlp_channels", 2, 40),
        Removal("attention_heads", 0, 1),
        Removal("mlp_channels", 0, 44),
    )
