"""FLOPs of a training in round numbers: 100 per token of the pruned model, 1000 of the dense."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from pruning.costs.accounting import Accounting
from pruning.recovery.flops import training_flops
from pruning.shape import ModelShape
from tests.pruning.recovery.recoveries import NARROW, SETTINGS

SETTINGS_OF_THREE = replace(SETTINGS, steps=3, batch_size=4, checkpoint_every=2)
"""Held-out text is measured before the first update, after the second and after the last."""


class RoundNumbers:
    """An accounting of a model with 10 parameters in the blocks that are left.

    Args:
        known: the shapes whose FLOPs are.
    """

    def __init__(self, *known: ModelShape) -> None:
        self.dense = ModelShape.dense(4, 3, 48)
        self.known = known or (self.dense, NARROW)

    def flops_per_token(self, shape: ModelShape, *, context_length: int) -> float | None:
        assert context_length == 24
        if shape not in self.known:
            return None
        return 1000.0 if shape == self.dense else 100.0

    def num_block_parameters(self, shape: ModelShape) -> int:
        assert shape == NARROW
        return 10


def said(accounting: RoundNumbers, **changes: object) -> float | None:
    return training_flops(
        cast("Accounting", accounting),
        NARROW,
        replace(SETTINGS_OF_THREE, **changes),  # type: ignore[arg-type]
        sequence_length=24,
        num_heldout_sequences=5,
    )


@pytest.mark.parametrize(
    ("loss", "rank", "of_token"),
    [
        ("nll", 4, 100 + 100),
        ("nll", None, 100 + 100 + 2 * 10),
        ("kl", 4, 100 + 100 + 1000),
        ("kl", None, 100 + 100 + 1000 + 2 * 10),
    ],
)
def test_tokens_go_forth_and_back_and_through_the_dense_model(
    loss: str, rank: int | None, of_token: int
) -> None:
    """Held-out text goes through the pruned model three times, through the dense one once."""
    updates, heldout = 3 * 4 * of_token, 5 * (3 * 100 + 1000)
    assert said(RoundNumbers(), loss=loss, rank=rank) == 24 * (updates + heldout)


def test_held_out_text_is_not_measured_twice_after_the_last_update() -> None:
    assert said(RoundNumbers(), loss="nll", steps=4) == 24 * (4 * 4 * 200 + 5 * (3 * 100 + 1000))


@pytest.mark.parametrize("known", [NARROW, ModelShape.dense(4, 3, 48)])
def test_not_known_where_one_of_the_models_is_not(known: ModelShape) -> None:
    assert said(RoundNumbers(known)) is None
