"""One matrix of a model while it is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from pruning.recovery.adapters import (
    AdaptedMatrix,
    add_adapters,
    add_differences,
    dropping,
    merged,
)
from tests.conftest import tiny_config, tiny_model
from tests.pruning.recovery.recoveries import SETTINGS

PATH = "model.layers.2.mlp.down_proj"
MATRICES = [AdaptedMatrix(PATH, 5, "mlp.down_proj")]
KEY = "5.mlp.down_proj"


def model_with(**changes: object) -> tuple[PreTrainedModel, dict[str, torch.nn.Parameter]]:
    """A model with an adapter; `changes` are of `SETTINGS`."""
    model = tiny_model(tiny_config("llama"))
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    return model, add_adapters(model, MATRICES, settings)


@torch.no_grad()
def test_an_adapter_adds_alpha_by_rank_b_a() -> None:
    """Beside the matrix, or in it; afterwards every weight is what it was, to the bit."""
    model, trained = model_with(rank=3, alpha=12.0, dropout=0.0)
    lora_a, lora_b = trained[f"{KEY}.lora_A"], trained[f"{KEY}.lora_B"]
    assert (lora_a.shape, lora_b.shape) == ((3, 48), (48, 3))
    assert lora_a.any()
    assert not lora_b.any()
    lora_b.copy_(torch.randn(48, 3, generator=torch.Generator().manual_seed(1)))
    module: Any = model.get_submodule(PATH)
    dense, bias = module.base_layer.weight.clone(), module.base_layer.bias
    inputs = torch.randn(7, 48, generator=torch.Generator().manual_seed(2))
    wanted = functional.linear(inputs, dense + 4.0 * (lora_b @ lora_a), bias)
    beside = module(inputs)
    torch.testing.assert_close(beside, wanted, rtol=1e-4, atol=1e-5)
    with merged(model, MATRICES):
        torch.testing.assert_close(module(inputs), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(module.base_layer.weight, dense)
    assert torch.equal(module(inputs), beside)
    assert all(weight.requires_grad for weight in trained.values())


def test_the_first_values_of_an_adapter_are_those_of_the_seed() -> None:
    """Whatever random numbers the program has drawn."""
    found = []
    for seed, state in ((7, 1), (7, 2), (8, 1)):
        model = tiny_model(tiny_config("llama"))
        torch.manual_seed(state)
        found.append(add_adapters(model, MATRICES, replace(SETTINGS, seed=seed)))
    first, again, other = (weights[f"{KEY}.lora_A"] for weights in found)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_dropout_is_that_of_the_adapters_while_they_are_trained() -> None:
    """Of no other module, in whatever mode the model was, and no longer than that."""

    def training(model: PreTrainedModel) -> set[str]:
        return {name for name, module in model.named_modules() if module.training}

    model, _ = model_with(dropout=0.25)
    model.train()
    with dropping(model, MATRICES):
        assert training(model) == {f"{PATH}.lora_dropout", f"{PATH}.lora_dropout.default"}
        assert model.get_submodule(f"{PATH}.lora_dropout.default").p == 0.25
    assert training(model) == set()
    with pytest.raises(KeyboardInterrupt), dropping(model, MATRICES):
        raise KeyboardInterrupt
    assert training(model) == set()


@torch.no_grad()
def test_what_is_added_to_a_whole_matrix_is_float32_and_rounded_with_it() -> None:
    model = tiny_model(tiny_config("llama")).to(torch.bfloat16)
    module: Any = model.get_submodule(PATH)
    dense = module.weight.clone()
    trained = add_differences(model, MATRICES)
    assert list(trained) == [f"{KEY}.difference"]
    added = trained[f"{KEY}.difference"]
    assert added.dtype == torch.float32
    assert torch.equal(module.weight, dense)
    step = dense.float() * 2.0**-10
    added += step
    assert torch.equal(module.weight, dense), "less than half of the last digit is rounded away"
    for _ in range(3):
        added += step
    assert torch.equal(module.weight, (dense.float() * (1 + 2.0**-8)).to(torch.bfloat16))
    assert not torch.equal(module.weight, dense), "and all four together are not"
