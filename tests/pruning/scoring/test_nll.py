"""Logits of a coarse type are cast to float32 before the loss, not after it."""

from __future__ import annotations

import torch

from pruning.scoring.nll import sequence_nll
from tests.conftest import tiny_config, tiny_model, tokens


def test_the_loss_is_computed_in_float32() -> None:
    """In bfloat16 it would be off by more than a thousandth."""
    model = tiny_model(tiny_config("llama")).to(torch.bfloat16)
    with torch.inference_mode():
        logits = model(tokens(), use_cache=False).logits[:, :-1].double()
    expected = -torch.log_softmax(logits, dim=-1).gather(2, tokens()[:, 1:, None]).sum(dim=(1, 2))
    torch.testing.assert_close(sequence_nll(model, tokens()), expected, rtol=2e-5, atol=0)
