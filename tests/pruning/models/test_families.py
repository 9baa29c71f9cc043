"""The contract of a family.

A new one is in the parametrization as soon as it is in the registry.
"""

from __future__ import annotations

import ast
import copy
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.export.transformers import pruned_model
from pruning.importance.channel_order import ChannelOrder, channel_order, reorder
from pruning.models.families import FAMILIES, begins_with_bos, family_of, require_causal_lm
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.scoring.nll import run_prefix, score_candidates, sequence_nll
from pruning.shape import LayerShape, ModelShape, Removal
from tests.conftest import ROOT, tiny_config, tiny_model, tokens

# Every difficulty at once: layer 0 without attention, a layer without MLP, narrowed MLPs, fewer KV
# groups, a layer cut in both.
HARD = ModelShape((LayerShape(0, 48), LayerShape(2, 0), LayerShape(1, 16), LayerShape(3, 5)))
BLOCKS_ONLY = ("gpt2", "gpt_neox", "granite", "olmo", "stablelm", "starcoder2", "smollm3", "cohere")
TOLERANCE = 1e-5


class TinyModel(NamedTuple):
    dense: LoadedModel
    accounting: Accounting

    @property
    def model(self) -> PreTrainedModel:
        return self.dense.model

    def copied(self) -> LoadedModel:
        return LoadedModel.of(copy.deepcopy(self.dense.model))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def tiny(request: pytest.FixtureRequest) -> TinyModel:
    config = tiny_config(request.param)
    return TinyModel(LoadedModel.of(tiny_model(config)), Accounting(config))


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(tokens(), use_cache=False).logits.clone()


def test_masked_equals_removed(tiny: TinyModel) -> None:
    model = tiny.model
    with masked(tiny.dense, HARD):
        seen = logits(model)
    removed = pruned_model(tiny.dense, HARD)
    assert (seen - logits(model)).abs().max() > 0.01, "the mask changes nothing"
    torch.testing.assert_close(seen, logits(removed), atol=TOLERANCE, rtol=0)


def test_reordering_keeps_the_function(tiny: TinyModel) -> None:
    dense = tiny.copied()
    model, geometry = dense.model, dense.geometry
    generator = np.random.default_rng(0)
    order = ChannelOrder(
        np.stack([generator.permutation(geometry.kv_heads) for _ in range(4)]).astype(np.int32),
        np.stack([generator.permutation(geometry.mlp_channels) for _ in range(4)]).astype(np.int32),
    )
    before = logits(model)
    weights = [parameter.clone() for parameter in model.parameters()]
    reorder(dense, order)
    assert any(
        not torch.equal(was, now) for was, now in zip(weights, model.parameters(), strict=True)
    )
    torch.testing.assert_close(logits(model), before, atol=TOLERANCE, rtol=0)


def test_leaving_a_mask_restores_everything(tiny: TinyModel) -> None:
    model = tiny.model
    before, parameters = (
        logits(model),
        {name: id(parameter) for name, parameter in model.named_parameters()},
    )
    modules = {name: id(module) for name, module in model.named_modules()}
    with masked(tiny.dense, HARD):
        pass
    with pytest.raises(KeyboardInterrupt), masked(tiny.dense, HARD):
        raise KeyboardInterrupt
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert {name: id(module) for name, module in model.named_modules()} == modules
    assert torch.equal(logits(model), before)


def test_predicted_equals_counted(tiny: TinyModel) -> None:
    model, accounting = tiny.model, tiny.accounting
    assert accounting.num_parameters(accounting.dense) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    pruned = pruned_model(tiny.dense, HARD)
    counted = sum(parameter.numel() for parameter in pruned.parameters())
    assert accounting.num_stored_parameters(HARD) == counted
    layers = accounting.family.decoder_layers(model)
    norms = [(0, name) for name in accounting.family.attention_norms] + [
        (1, name) for name in accounting.family.mlp_norms
    ]
    unused = sum(
        parameter.numel()
        for layer, name in norms
        for parameter in layers[layer].get_submodule(name).parameters()
    )
    assert unused > 0
    assert accounting.num_parameters(HARD) == counted + unused


def test_prefix_reuse_is_bit_identical(tiny: TinyModel) -> None:
    dense = tiny.dense
    base = ModelShape.dense(4, 3, 48).without(Removal("mlp", 1, 0))
    candidates = [base.without(Removal("attention", layer, 0)) for layer in range(4)]
    candidates += [base.without(Removal("mlp_channels", layer, 32)) for layer in (0, 2, 3)] + [
        base.without(Removal("attention_heads", 3, 1)),
        base,
    ]
    reused = score_candidates(dense, run_prefix(dense, base, tokens()), candidates)
    for candidate, nll in zip(candidates, reused, strict=True):
        with masked(dense, candidate):
            assert torch.equal(nll, sequence_nll(dense.model, tokens())), candidate.text


def test_nll_against_logits_in_double(tiny: TinyModel) -> None:
    """An independent reference: the whole logits, log-softmax in float64.

    The model's own head scaling and soft-capping are in it.
    """
    expected = (
        -torch.log_softmax(logits(tiny.model)[:, :-1].double(), dim=-1)
        .gather(2, tokens()[:, 1:, None])
        .sum(dim=(1, 2))
    )
    for chunk in (1, 7, 4096):
        torch.testing.assert_close(
            sequence_nll(tiny.model, tokens(), head_chunk_tokens=chunk),
            expected,
            rtol=1e-6,
            atol=1e-4,
        )


def test_nothing_is_copied_by_a_mask(tiny: TinyModel) -> None:
    model = tiny.model
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with masked(tiny.dense, HARD):
        assert {
            parameter.untyped_storage().data_ptr() for parameter in model.parameters()
        } <= storages


@pytest.mark.parametrize("importance", ["l1", "activation"])
def test_orders_sort_by_importance(tiny: TinyModel, importance: str) -> None:
    """Channels and heads whose weights are scaled down come last."""
    dense = tiny.copied()
    family, geometry = dense.family, dense.geometry
    weak_channels, weak_head = [3, 11, 40], 1
    for attention, mlp in dense.blocks:
        for block, cuts in ((attention, family.attention_cuts), (mlp, family.mlp_cuts)):
            for cut in cuts:
                _scale_down(
                    block.get_submodule(cut.module), cut, geometry, weak_channels, weak_head
                )
    order = channel_order(dense, importance, [tokens()])  # type: ignore[arg-type]
    for layer in range(geometry.num_layers):
        assert set(order.mlp_channels[layer, -3:]) == set(weak_channels)
        assert order.kv_heads[layer, -1] == weak_head
        assert sorted(order.mlp_channels[layer]) == list(range(geometry.mlp_channels))


def _scale_down(module, cut, geometry, channels, head) -> None:
    dense, offset = LayerShape(geometry.kv_heads, geometry.mlp_channels), 0
    if module.weight.dim() == 1:
        return
    for part in cut.parts:
        size = geometry.size(part, dense)
        if part in ("gate", "up", "down"):
            rows = torch.tensor(channels)
        else:
            width = size // geometry.kv_heads
            rows = torch.arange(head * width, (head + 1) * width)
        with torch.no_grad():
            module.weight[(slice(None),) * cut.dim + (rows + offset,)] *= 1e-3
        offset += size


def test_l1_of_heads_counts_shared_rows_per_query() -> None:
    """docs/concepts/method.md, "Weight reordering": a KV group's importance is the mean over its
    channels of |q| + |k| + |v|, k and v once for each query head that shares them.
    """
    config = tiny_config("qwen2")
    dense = LoadedModel.of(tiny_model(config))
    attention, _ = dense.blocks[2]
    rows = [
        projection.weight.abs().sum(dim=1)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]
    expected = []
    for head in range(3):
        channels = []
        for query in range(2):
            for channel in range(8):
                shared = rows[1][head * 8 + channel] + rows[2][head * 8 + channel]
                channels.append(rows[0][(head * 2 + query) * 8 + channel] + shared)
        expected.append(sum(channels) / len(channels))
    order = channel_order(dense, "l1")
    assert order.kv_heads[2].tolist() == sorted(range(3), key=lambda head: -expected[head])


@pytest.mark.parametrize("model_type", BLOCKS_ONLY)
def test_other_architectures_prune_by_blocks(model_type: str) -> None:
    config = tiny_config(
        model_type,
        **({"num_key_value_heads": 6} if model_type in ("gpt2", "gpt_neox") else {}),
        **_own(model_type),
    )
    dense = LoadedModel.of(tiny_model(config))
    assert not dense.family.prunes_widths
    assert Accounting(config).family == dense.family, "found alike with and without weights"
    base = dense.geometry.dense
    candidates = [
        base.without(Removal("attention", 0, 0)),
        base.without(Removal("mlp", 2, 0)),
        base.without(Removal("attention", 3, 0)),
    ]
    reused = score_candidates(dense, run_prefix(dense, base, tokens()), candidates)
    for candidate, nll in zip(candidates, reused, strict=True):
        with masked(dense, candidate):
            assert torch.equal(nll, sequence_nll(dense.model, tokens()))
    with (
        pytest.raises(ValueError, match="whole blocks only"),
        masked(dense, base.without(Removal("mlp_channels", 0, 8))),
    ):
        pass


def _own(model_type: str) -> dict[str, object]:
    if model_type == "gpt2":
        return {"n_embd": 48, "n_layer": 4, "n_head": 6, "n_inner": 48}
    return {}


@pytest.mark.parametrize("model_type", ["bert", "roberta", "t5", "mamba"])
def test_what_cannot_be_pruned(model_type: str) -> None:
    config = AutoConfig.for_model(model_type)
    with pytest.raises(InputError, match=f"{model_type}.*llama"), torch.device("meta"):
        family_of(
            config,
            torch.nn.Module() if model_type == "t5" else AutoModelForCausalLM.from_config(config),
        )


STEMS = ("baichuan", "gemma", "llama", "mistral", "olmo", "phi3", "qwen")
OWN_FAMILY = {"models/families.py", "models/baichuan.py"}
NAMES_FAMILIES = OWN_FAMILY | {
    # DeciLM is Llama with other blocks; these two are copied into exports, where they stand alone.
    "export/configuration_decilm.py",
    "export/modeling_decilm.py",
    # Names of llama.cpp's tokenizers, which happen to be those of families.
    "export/gguf_tokenizer.py",
    # A rotary scaling has that name.
    "export/llama_like.py",
}
REGISTRIES = {
    "CONFIG_MAPPING",
    "CONFIG_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "_registered",
}


def compared_types(tree: ast.AST) -> list[int]:
    """Lines that compare a model type with anything but the formats that this project writes or
    None, or look it up in anything but a registry of transformers.
    """
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
            about = any(side.endswith(("model_type", "model_type')")) for side in sides)
            if about and sides[-1] not in REGISTRIES | {"decilm.MODEL_TYPE", "None"}:
                lines.append(node.lineno)
    return lines


def named_families(tree: ast.AST) -> list[str]:
    """Families that code names: classes that it imports, and strings but for docstrings and
    messages, which have spaces, and the name of llama.cpp.
    """
    found = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers")
        for alias in node.names
    ]
    found += [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value
    ]
    return [name for name in found if name.lower().startswith(STEMS) and name != "llama.cpp"]


def test_what_is_special_about_a_family_is_in_one_place() -> None:
    root = ROOT / "pruning"
    compared, named = {}, {}
    for path in sorted(root.rglob("*.py")):
        name, tree = path.relative_to(root).as_posix(), ast.parse(path.read_text())
        if name not in OWN_FAMILY:
            compared[name] = compared_types(tree)
        if name not in NAMES_FAMILIES:
            named[name] = named_families(tree)
    assert len(named) > 40
    assert {name: lines for name, lines in compared.items() if lines} == {}
    assert {name: found for name, found in named.items() if found} == {}
    assert all(family.startswith(STEMS) for family in FAMILIES)


@pytest.mark.parametrize(
    "code",
    [
        "if config.model_type == 'other': pass",
        "if raw.get('model_type') == OTHER: pass",
        "if 'other' != family.model_type: pass",
        "if config.model_type in TYPES: pass",
    ],
)
def test_the_check_sees_comparisons(code: str) -> None:
    assert compared_types(ast.parse(code)) == [1]


@pytest.mark.parametrize(
    "code", ["from transformers import GemmaTokenizer", "TYPES = ('qwen2',)", "f('gemma3_text')"]
)
def test_the_check_sees_names(code: str) -> None:
    assert len(named_families(ast.parse(code))) == 1


def test_what_has_no_layers_is_refused() -> None:
    empty = nn.Sequential(nn.ModuleList())
    with pytest.raises(InputError, match="cannot find one attention and one MLP in each layer"):
        family_of(SimpleNamespace(model_type="bloom"), empty)  # type: ignore[arg-type]


def test_a_model_of_its_own_code_says_that_it_is_causal() -> None:
    own = {"AutoModelForCausalLM": "modeling.Own"}
    require_causal_lm(SimpleNamespace(model_type="own", auto_map=own))  # type: ignore[arg-type]
    for auto_map in (None, {}, {"AutoModel": "modeling.Own"}):
        config = SimpleNamespace(model_type="own", auto_map=auto_map)
        with pytest.raises(InputError, match="'own' is not a decoder-only language model"):
            require_causal_lm(config)  # type: ignore[arg-type]


def test_windows_of_gemma_begin_with_bos() -> None:
    """Whatever its tokenizer is derived to."""
    gemma = type("GemmaTokenizer", (), {})
    assert begins_with_bos(type("GemmaTokenizerFast", (gemma,), {})())  # type: ignore[arg-type]
    assert not begins_with_bos(type("LlamaTokenizer", (), {})())  # type: ignore[arg-type]


@pytest.mark.parametrize(("model_type", "always"), [("llama", False), ("qwen2", True)])
def test_biases_of_attention_are_those_of_the_configuration(model_type: str, always: bool) -> None:
    family = FAMILIES[model_type]
    assert family.has_qkv_bias(SimpleNamespace()) is always  # type: ignore[arg-type]
    for given in (False, True):
        config = SimpleNamespace(attention_bias=given)
        assert family.has_qkv_bias(config) is (given or always)  # type: ignore[arg-type]


def test_families_that_compute_as_llama() -> None:
    """Their weights fit formats of Llama as they are."""
    as_llama = {name for name, family in FAMILIES.items() if family.computes_as_llama}
    assert as_llama == {"llama", "mistral", "qwen2"}
