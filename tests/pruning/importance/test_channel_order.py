"""The definition of the order `activation` (docs/concepts/method.md, "The order of channels"), held
by an independent computation: numpy in float64, from inputs that the test collects itself.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pruning.importance.channel_order import channel_order, reorder
from pruning.models.loaded_model import LoadedModel
from tests.conftest import tiny_config, tiny_model, tokens

KV_HEADS = 6
SIZES = {"num_attention_heads": 12, "num_key_value_heads": KV_HEADS, "head_dim": 4}

Matrix = npt.NDArray[np.float64]


def batches() -> list[torch.Tensor]:
    """Unlike each other, so that one of them alone gives another order."""
    return [tokens(3, 24, seed=1), tokens(2, 24, seed=2, vocab=4), tokens(1, 24, seed=3)]


def inputs_of(dense: LoadedModel) -> dict[str, Matrix]:
    """[tokens, columns] of what flows into every projection back into the residual stream."""
    seen: dict[str, list[Matrix]] = defaultdict(list)
    for name, module in dense.model.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: seen[name].append(
                    inputs[0].double().flatten(0, 1).numpy()
                )
            )
    for batch in batches():
        with torch.inference_mode():
            dense.model(batch, use_cache=False)
    return {name: np.concatenate(rows) for name, rows in seen.items()}


def importances(dense: LoadedModel, name: str, inputs: Matrix) -> Matrix:
    """Of each column: the L2 norm of what flows into it, times the L2 norm of its weights."""
    weight = dense.model.get_submodule(name).weight.detach().double().numpy()
    return np.sqrt((inputs**2).sum(axis=0)) * np.sqrt((weight**2).sum(axis=0))


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gemma3_text"])
def test_activation_is_what_it_is_defined_as(model_type: str) -> None:
    dense = LoadedModel.of(tiny_model(tiny_config(model_type, **SIZES)))
    order = channel_order(dense, "activation", batches())
    found = inputs_of(dense)
    for layer in range(dense.geometry.num_layers):
        path = f"model.layers.{layer}"
        channels = importances(dense, *_named(found, f"{path}.mlp.down_proj"))
        columns = importances(dense, *_named(found, f"{path}.self_attn.o_proj"))
        heads = [columns[8 * head : 8 * head + 8].mean() for head in range(KV_HEADS)]
        assert order.mlp_channels[layer].tolist() == np.argsort(-channels).tolist()
        assert order.kv_heads[layer].tolist() == np.argsort(-np.array(heads)).tolist()


def _named(found: dict[str, Matrix], name: str) -> tuple[str, Matrix]:
    return name, found[name]


def test_a_model_of_one_layer_is_sorted() -> None:
    dense = LoadedModel.of(tiny_model(tiny_config("llama", num_hidden_layers=1)))
    before = dense.model(tokens(), use_cache=False).logits
    order = channel_order(dense, "l1")
    reorder(dense, order)
    assert not np.array_equal(order.mlp_channels[0], np.arange(48))
    torch.testing.assert_close(dense.model(tokens(), use_cache=False).logits, before)
