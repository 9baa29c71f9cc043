"""Text that a masked model goes on with, against the model of that shape."""

from __future__ import annotations

import pytest
import torch

from pruning.export.transformers import pruned_model
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.generation import continuations
from pruning.shape import ModelShape
from tests.conftest import tiny_config, tiny_model, tokens


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("text", ["3x48*4", "0x48 2x0 1x16 3x5", "0x48*4"])
def test_each_prompt_goes_on_with_the_likeliest_tokens(family: str, text: str) -> None:
    """Wherever attention is gone; of each prompt alone, and the masked model is whole again."""
    loaded, shape = LoadedModel.of(tiny_model(tiny_config(family))), ModelShape.parse(text)
    prompts = [tokens(1, length, seed=length) for length in (1, 7, 11)]
    with torch.inference_mode():
        before = loaded.model(prompts[1]).logits
        found = continuations(loaded, shape, prompts, num_tokens=6)
        model, expected = pruned_model(loaded, shape), []
        for prompt in prompts:
            whole = prompt
            for _ in range(6):
                likeliest = model(whole, use_cache=False).logits[:, -1:].argmax(dim=-1)
                whole = torch.cat([whole, likeliest], dim=1)
            expected.append(tuple(whole[0, prompt.shape[1] :].tolist()))
        assert torch.equal(loaded.model(prompts[1]).logits, before)
    assert found == tuple(expected)
    assert len(set(found)) > 1
