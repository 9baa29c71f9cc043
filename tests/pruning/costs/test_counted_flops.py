"""FLOPs of one token, of tiny models: 48 channels, 4 layers, a vocabulary of 128."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from pruning.costs.counted_flops import flops_of_token
from tests.conftest import tiny_config, tiny_model

BLOCKS = 4 * ((48 + 24 + 24 + 48) * 48 + 3 * 48 * 48)
"""Weights of all attentions and MLPs."""


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return tiny_model(tiny_config("llama"))


@pytest.mark.parametrize("position", [1, 2, 9])
def test_a_token_meets_all_weights_and_the_tokens_before_it(
    llama: PreTrainedModel, position: int
) -> None:
    """And itself: with each, two products of 48 channels in every layer."""
    found = flops_of_token(llama, position)
    assert found == 2 * (BLOCKS + 48 * 128) + 4 * 2 * 2 * 48 * position


def test_a_configuration_that_keeps_no_cache_changes_nothing() -> None:
    model = tiny_model(tiny_config("llama", use_cache=False))
    kept = tiny_model(tiny_config("llama"))
    for position in (1, 9):
        assert flops_of_token(model, position) == flops_of_token(kept, position)


def test_a_model_is_counted_where_it_is(llama: PreTrainedModel) -> None:
    """On another device than tensors are made on; here on one that computes nothing."""
    elsewhere = tiny_model(tiny_config("llama")).to("meta")  # type: ignore[arg-type]
    places: set[str] = set()
    elsewhere.get_input_embeddings().register_forward_pre_hook(
        lambda _module, inputs: places.add(inputs[0].device.type)
    )
    assert flops_of_token(elsewhere, 9) == flops_of_token(llama, 9)
    assert places == {"meta"}


def test_nothing_is_printed(llama: PreTrainedModel, capsys: pytest.CaptureFixture[str]) -> None:
    flops_of_token(llama, 3)
    assert capsys.readouterr() == ("", "")


def test_only_the_counted_token_is_computed_by_plain_formulas(llama: PreTrainedModel) -> None:
    """Those of all tokens before it would take memory with the square of their number, and logits
    of each the whole vocabulary.
    """
    attended: list[tuple[int, bool]] = []
    answered: list[int] = []
    hooks = [
        llama.model.layers[0].register_forward_pre_hook(
            lambda _module, inputs: attended.append(
                (inputs[0].shape[1], torch.backends.cuda.flash_sdp_enabled())
            )
        ),
        llama.lm_head.register_forward_pre_hook(
            lambda _module, inputs: answered.append(inputs[0].shape[1])
        ),
    ]
    flops_of_token(llama, position=9)
    flops_of_token(llama, position=1)
    for hook in hooks:
        hook.remove()
    assert attended == [(8, True), (1, False), (1, False)], "before the first there is none"
    assert answered == [1, 1]
