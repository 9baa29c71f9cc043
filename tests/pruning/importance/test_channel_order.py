"""The definitions of the orders (docs/concepts/method.md, "Weight reordering" and "The order of
channels"), held by an independent computation: numpy in float64, from inputs that the test collects
itself. And what sorting does to weights.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pruning.importance.channel_order import (
    STATISTICS,
    ChannelOrder,
    CompensationSource,
    RecoverySource,
    channel_order,
    descending,
    reorder,
)
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
    assert not any(module._forward_pre_hooks for module in dense.model.modules())
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


def rows_of(weights: dict[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    """The rows of each part, whether a family has them in one matrix or in several."""
    path = f"model.layers.{layer}"
    of = {
        name.removeprefix(f"{path}.").removesuffix("_proj.weight"): value
        for name, value in weights.items()
        if name.startswith(path)
    }
    if "self_attn.qkv" in of:
        q, k, v = of["self_attn.qkv"].split([12 * 4, KV_HEADS * 4, KV_HEADS * 4])
        gate, up = of["mlp.gate_up"].split([48, 48])
    else:
        q, k, v = (of[f"self_attn.{part}"] for part in "qkv")
        gate, up = of["mlp.gate"], of["mlp.up"]
    names = {"q": q, "k": k, "v": v, "gate": gate, "up": up}
    return names | {"o": of["self_attn.o"].T, "down": of["mlp.down"].T}


def stored(dense: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in dense.model.state_dict().items()}


@pytest.mark.parametrize("model_type", ["llama", "phi3", "olmo2"])
def test_l1_is_what_it_is_defined_as(model_type: str) -> None:
    dense = LoadedModel.of(tiny_model(tiny_config(model_type, **SIZES)))
    order = channel_order(dense, "l1")
    assert order.kv_heads.dtype == order.mlp_channels.dtype == np.dtype(np.int32)
    for layer in range(dense.geometry.num_layers):
        l1 = {
            part: np.abs(rows.double().numpy()).sum(axis=1)
            for part, rows in rows_of(stored(dense), layer).items()
        }
        heads = [
            l1["q"][8 * head : 8 * head + 8].mean()
            + l1["k"][4 * head : 4 * head + 4].mean()
            + l1["v"][4 * head : 4 * head + 4].mean()
            for head in range(KV_HEADS)
        ]
        assert order.kv_heads[layer].tolist() == np.argsort(-np.array(heads)).tolist()
        assert order.mlp_channels[layer].tolist() == np.argsort(-(l1["gate"] + l1["up"])).tolist()


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3", "olmo2"])
def test_sorted_weights_lie_as_the_order_says_and_compute_the_same(model_type: str) -> None:
    dense = LoadedModel.of(tiny_model(tiny_config(model_type, **SIZES)))
    logits, before = dense.model(tokens(), use_cache=False).logits, stored(dense)
    order = channel_order(dense, "l1")
    reorder(dense, order)
    after = stored(dense)
    for layer in range(dense.geometry.num_layers):
        heads, channels = order.kv_heads[layer], order.mlp_channels[layer].tolist()
        queries = [8 * head + index for head in heads for index in range(8)]
        keys = [4 * head + index for head in heads for index in range(4)]
        wanted = {"q": queries, "o": queries, "k": keys, "v": keys}
        wanted |= dict.fromkeys(("gate", "up", "down"), channels)
        found = rows_of(after, layer)
        for part, rows in rows_of(before, layer).items():
            assert torch.equal(found[part], rows[wanted[part]]), part
            assert not torch.equal(found[part], rows), part
    torch.testing.assert_close(dense.model(tokens(), use_cache=False).logits, logits)


def test_weights_that_are_sorted_are_sorted_on_to_another_order() -> None:
    """In two steps as in one, and back."""
    models = [LoadedModel.of(tiny_model(tiny_config("llama", **SIZES))) for _ in range(2)]
    l1, activation = (channel_order(models[0], kind, batches()) for kind in ("l1", "activation"))
    reorder(models[0], l1)
    reorder(models[0], activation.after(l1))
    dense = stored(models[1])
    reorder(models[1], activation)
    found, wanted = stored(models[0]), stored(models[1])
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    reorder(models[0], ChannelOrder.as_stored(models[0].geometry).after(activation))
    assert all(torch.equal(value, dense[name]) for name, value in stored(models[0]).items())
    assert activation.after(l1).kv_heads.dtype == np.int32


def test_the_order_of_the_checkpoint() -> None:
    """Of `none`, and of families of which only whole blocks can be removed."""
    llama = LoadedModel.of(tiny_model(tiny_config("llama", **SIZES)))
    other = LoadedModel.of(tiny_model(tiny_config("gpt_neox", num_key_value_heads=6)))
    before = stored(other)
    for dense, heads, kind in ((llama, KV_HEADS, "none"), (other, 6, "l1"), (other, 6, "none")):
        order = channel_order(dense, kind)  # type: ignore[arg-type]
        assert order.kv_heads.tolist() == [list(range(heads))] * 4
        assert order.mlp_channels.tolist() == [list(range(48))] * 4
        assert order.kv_heads.dtype == order.mlp_channels.dtype == np.dtype(np.int32)
        reorder(dense, order)
    assert all(torch.equal(value, before[name]) for name, value in stored(other).items())


def test_equal_scores_keep_their_order() -> None:
    assert descending(torch.tensor([1.0, 3.0, 2.0, 3.0])).tolist() == [1, 3, 2, 0]
    assert descending(torch.zeros(500)).tolist() == list(range(500))


ORDER = ChannelOrder(
    np.array([[1, 0], [0, 1]], dtype=np.int32), np.array([[2, 0, 1], [0, 1, 2]], dtype=np.int32)
)
SOURCE = CompensationSource("/somewhere/else", "0" * 32, 0.25)


def test_a_fingerprint_sees_tables_compensation_and_recovery() -> None:
    orders = [
        ORDER,
        replace(ORDER, kv_heads=ORDER.kv_heads[::-1]),
        replace(ORDER, mlp_channels=ORDER.mlp_channels[::-1]),
        replace(ORDER, mlp_channels=ORDER.mlp_channels.reshape(3, 2)),
        replace(ORDER, compensation=SOURCE),
        replace(ORDER, compensation=replace(SOURCE, ridge=0.5)),
        replace(ORDER, compensation=replace(SOURCE, statistics="1" * 32)),
        replace(ORDER, recovery=RecoverySource("/adapters", "2" * 32)),
        replace(ORDER, recovery=RecoverySource("/adapters", "3" * 32)),
    ]
    found = [order.fingerprint for order in orders]
    assert len(set(found)) == len(orders)
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in found)
    elsewhere = replace(SOURCE, path="/mnt/statistics")
    assert replace(ORDER, compensation=elsewhere).fingerprint == found[4]
    swapped = ChannelOrder(ORDER.kv_heads.astype(">i4"), ORDER.mlp_channels.astype(">i4"))
    assert swapped.fingerprint == found[0]


@pytest.mark.parametrize("source", [None, SOURCE])
def test_a_saved_order_finds_its_statistics_beside_it(
    source: CompensationSource | None, tmp_path: Path
) -> None:
    order = replace(ORDER, compensation=source, recovery=RecoverySource("/adapters", "2" * 32))
    order.save(tmp_path / "order")
    again = ChannelOrder.load(tmp_path / "order")
    assert again.kv_heads.tolist() == ORDER.kv_heads.tolist()
    assert again.mlp_channels.tolist() == ORDER.mlp_channels.tolist()
    assert again.recovery is None
    beside = str(tmp_path / STATISTICS)
    assert again.compensation == (None if source is None else replace(source, path=beside))
