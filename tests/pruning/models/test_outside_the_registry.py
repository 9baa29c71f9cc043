"""What is known of architectures that the registry of families does not name, and what is said of
those that it does.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pruning.errors import InputError
from pruning.models.families import FAMILIES, Family, cut_views, family_of
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.shape import LayerShape, Removal
from tests.conftest import tiny_config, tiny_model, tokens


def decoder(*layers: tuple[str, ...]) -> nn.Module:
    """Layers with submodules of those names, beside a list of another length."""
    found = (nn.ModuleDict({name: nn.Identity() for name in names}) for names in layers)
    return nn.ModuleDict(
        {"heads": nn.ModuleList([nn.Identity()] * 3), "decoder": nn.ModuleList(found)}
    )


def config(model_type: str = "bloom", **values: object) -> Any:
    return SimpleNamespace(model_type=model_type, **values)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("attention", ["self_attn", "self_attention", "attention", "attn"])
@pytest.mark.parametrize("mlp", ["mlp", "feed_forward", "ffn"])
@pytest.mark.parametrize("others", [(), ("norm",)])
def test_an_attention_and_an_mlp_in_each_layer_are_whole_blocks(
    num_layers: int, attention: str, mlp: str, others: tuple[str, ...]
) -> None:
    """Nothing is known of their norms and projections, or of what the MLP reads."""
    model = decoder(*[(attention, mlp, *others)] * num_layers)
    found = family_of(config(num_hidden_layers=num_layers), model)
    assert (found.model_type, found.layers) == ("bloom", "decoder")
    assert (found.attention, found.mlp) == (attention, mlp)
    assert (found.attention_cuts, found.mlp_cuts) == ((), ())
    assert (found.attention_norms, found.mlp_norms) == ((), ())
    assert (found.sequential, found.computes_as_llama, found.prunes_widths) == (False,) * 3


@pytest.mark.parametrize(
    "layers",
    [
        [("attn", "mlp"), ("attn",)],
        [("attn", "mlp"), ("mlp",)],
        [("attn",), ("attn", "mlp")],
        [("attn", "mlp", "ffn")] * 2,
        [("attn", "self_attn", "mlp")] * 2,
        [("mixer",)] * 2,
    ],
)
def test_layers_whose_blocks_cannot_be_told_apart(layers: list[tuple[str, ...]]) -> None:
    with pytest.raises(InputError, match="cannot find one attention and one MLP in each layer"):
        family_of(config(num_hidden_layers=2), decoder(*layers))


def test_layers_are_as_many_as_the_configuration_says() -> None:
    one, none = decoder(("attn", "mlp")), decoder()
    for counted, model in (
        (config(), one),
        (config(num_hidden_layers=2), one),
        (config(), none),
        (config(num_hidden_layers=0), none),
    ):
        with pytest.raises(InputError, match="cannot find one attention and one MLP"):
            family_of(counted, model)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "bert", "is_decoder": False},
        {"model_type": "bart", "is_encoder_decoder": True},
        {"model_type": "vit"},
    ],
)
def test_what_is_no_decoder_is_refused_whatever_its_layers(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is not a decoder-only language model"):
        family_of(config(num_hidden_layers=1, **values), decoder(("attn", "mlp")))


def test_an_encoder_that_decodes_is_a_decoder() -> None:
    decodes = config("bert", num_hidden_layers=1, is_decoder=True)
    assert family_of(decodes, decoder(("attn", "mlp"))).attention == "attn"
    named = config("gpt_neox", num_hidden_layers=1, is_decoder=False)
    assert family_of(named, decoder(("attn", "mlp"))).mlp == "mlp"


def test_widths_are_pruned_where_both_blocks_can_be_narrowed() -> None:
    """In families of the registry, whose MLPs read what the attention has added."""
    assert Family("own").prunes_widths
    assert not Family("own", mlp_cuts=()).prunes_widths
    assert not Family("own", attention_cuts=()).prunes_widths
    for family in FAMILIES.values():
        assert family.prunes_widths
        assert family.sequential


@pytest.mark.parametrize("block", ["attention", "mlp"])
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_norms_of_a_block_serve_it_alone(model_type: str, block: Any) -> None:
    """Without the block, their weights change nothing, and those of all other norms do."""
    dense = LoadedModel.of(tiny_model(tiny_config(model_type)))
    layer, idle = dense.layers[1], set()
    norms = [name for name, _ in layer.named_children() if "norm" in name]
    shape = dense.geometry.dense.without(Removal(block, 1, 0))
    with masked(dense, shape), torch.inference_mode():
        before = dense.model(tokens(), use_cache=False).logits
        for name in norms:
            weight = layer.get_submodule(name).weight
            kept = weight.clone()
            weight.add_(1)
            if torch.equal(dense.model(tokens(), use_cache=False).logits, before):
                idle.add(name)
            weight.copy_(kept)
    family = dense.family
    assert idle == set(family.attention_norms if block == "attention" else family.mlp_norms)
    assert len(norms) > len(idle) > 0


def test_views_of_a_cut() -> None:
    """Of q, k and v behind one another, in one matrix: what 2 of 3 KV heads keep, and their
    biases; and of columns, whose bias stays whole.
    """
    dense = LoadedModel.of(tiny_model(tiny_config("phi3")))
    attention, _ = dense.blocks[0]
    qkv, o = dense.family.attention_cuts
    for projection in (attention.qkv_proj, attention.o_proj):
        projection.bias = nn.Parameter(torch.arange(float(projection.out_features)))
    sizes = dense.geometry, LayerShape(2, 48), LayerShape(3, 48)
    views = cut_views(qkv, attention, *sizes)
    rows = [range(32), range(48, 64), range(72, 88)]
    for (weight, bias), kept in zip(views, rows, strict=True):
        assert torch.equal(weight, attention.qkv_proj.weight[list(kept)])
        assert bias is not None
        assert bias.tolist() == list(kept)
    [(weight, bias)] = cut_views(o, attention, *sizes)
    assert torch.equal(weight, attention.o_proj.weight[:, :32])
    assert bias is attention.o_proj.bias
