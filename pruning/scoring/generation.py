"""How a model in some shape goes on with a text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.shape import ModelShape


@torch.inference_mode()
def continuations(
    loaded: LoadedModel,
    shape: ModelShape,
    prompts: Sequence[torch.Tensor],
    *,
    num_tokens: int,
) -> tuple[tuple[int, ...], ...]:
    """The tokens that greedy decoding adds to each prompt (int64 [1, T]); the first of equally
    likely ones.

    Each runs the whole text again, as scores are computed: a cache asks some layer how many tokens
    it holds, and the attention of any may be gone.
    """
    with masked(loaded, shape):
        return tuple(_continuation(loaded, prompt_1T, num_tokens) for prompt_1T in prompts)


def _continuation(loaded: LoadedModel, prompt_1T: torch.Tensor, num_tokens: int) -> tuple[int, ...]:
    tokens_1T = prompt_1T
    for _ in range(num_tokens):
        logits_V = loaded.model(input_ids=tokens_1T, use_cache=False).logits[0, -1]
        best_11 = logits_V.argmax().to(tokens_1T.device).view(1, 1)
        tokens_1T = torch.cat([tokens_1T, best_11], dim=1)
    return tuple(tokens_1T[0, prompt_1T.shape[1] :].tolist())
