"""FLOPs of one token, counted in the matrix products that run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel


def flops_of_token(model: PreTrainedModel, position: int) -> int:
    """FLOPs of the forward of one token that attends to `position` tokens, itself included.

    The attention and experts of that token run by their plain formulas: fused kernels do not say
    what they compute. The tokens before it run as they always do, since the plain formula of
    attention takes memory with the square of their number.
    """
    device = model.get_input_embeddings().weight.device
    ids = torch.zeros(1, position, dtype=torch.long, device=device)  # type: ignore[arg-type]
    cache = (
        model.base_model(input_ids=ids[:, 1:], use_cache=True).past_key_values
        if position > 1
        else None
    )
    counter = FlopCounterMode(display=False)
    with _plain_experts(model), sdpa_kernel(SDPBackend.MATH), counter:
        model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    return int(counter.get_total_flops())


@contextmanager
def _plain_experts(model: PreTrainedModel) -> Iterator[None]:
    """One product for each expert, instead of one kernel for all."""
    config = model.config.get_text_config()
    before = config._experts_implementation
    config._experts_implementation = "eager"
    try:
        yield
    finally:
        config._experts_implementation = before
