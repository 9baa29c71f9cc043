"""DeciLM folders: what vLLM's loader reads, field by field, and what transformers computes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from pruning.costs.accounting import Accounting
from pruning.export import decilm
from pruning.export.decilm import register, write
from pruning.export.source import ExportSource
from pruning.export.verify_transformers import probe_tokens
from pruning.models.loaded_model import LoadedModel
from pruning.shape import ModelShape
from tests.conftest import tiny_config, tiny_model
from tests.pruning.export.gguf_models import LLAMA3_ROPE
from tests.pruning.export.sources import masked_logits
from tests.pruning.export.stock_checks import TOLERANCE, check_opened, opened_by_stock
from tests.pruning.export.test_export import HARD

# Four KV heads of two query heads: three of them need a fourth of zeros, and one MLP is a multiple
# of 256.
FOUR_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 512}
SOURCES: dict[str, tuple[str, ModelShape, dict[str, object]]] = {
    "llama": ("llama", HARD, {"attention_bias": False, "mlp_bias": False}),
    "llama with biases, tied": ("llama", HARD, {"tie_word_embeddings": True}),
    "llama 3 rope": ("llama", HARD, {"attention_bias": False, "rope_parameters": LLAMA3_ROPE}),
    "mistral": ("mistral", HARD, {"sliding_window": None}),
    "qwen2": ("qwen2", HARD, {}),
    "four heads": ("qwen2", ModelShape.parse("3x512 2x256 4x0 3x7 1x300 4x512"), FOUR_HEADS),
    "dense": ("llama", ModelShape.dense(6, 3, 48), {}),
}


def source_of(name: str, folder: Path) -> ExportSource:
    model_type, shape, changes = SOURCES[name]
    config = tiny_config(model_type, num_hidden_layers=6, **changes)
    return ExportSource(LoadedModel.of(tiny_model(config)), shape, folder, torch.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("decilm")
    for name in SOURCES:
        (root / name).mkdir()
        source = source_of(name, root)
        write(root / name, source)
        ids = probe_tokens(128, 256)
        save_file(
            {"input_ids": ids, "logits": masked_logits(source, ids)},
            root / name / "probe.safetensors",
        )
    return {name: root / name for name in SOURCES}


@pytest.fixture(scope="module")
def results(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What a fresh process without our packages finds."""
    return opened_by_stock(folders.values(), tmp_path_factory.mktemp("modules"))


@pytest.mark.parametrize("name", SOURCES)
def test_stock_transformers_opens_and_generates(
    results: dict[str, dict[str, Any]], name: str
) -> None:
    code = {"configuration_decilm.py", "modeling_decilm.py", "modeling_pruned.py"}
    check_opened(results[name], code=code)
    assert results[name]["class"] == "DeciLMForCausalLM"
    assert results[name]["config"] == "DeciLMConfig"


def as_vllm_reads(raw: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors for which vLLM 0.32 makes room (`models/nemotron_nas.py`),
    from the fields that it reads, by its rules.
    """
    hidden, heads, size = raw.hidden_size, raw.num_attention_heads, raw.head_dim
    bias = getattr(raw, "attention_bias", False) or getattr(raw, "bias", False)
    qkv_bias = raw.qkv_bias if hasattr(raw, "qkv_bias") else bias
    room: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (raw.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not raw.tie_word_embeddings:
        room["lm_head.weight"] = (raw.vocab_size, hidden)
    for index in range(raw.num_hidden_layers):
        block, at = raw.block_configs[index], f"model.layers.{index}."
        if not block.attention.no_op:
            kv_heads = heads // block.attention.n_heads_in_group
            assert heads == kv_heads * block.attention.n_heads_in_group
            rows = {"q_proj": heads * size, "k_proj": kv_heads * size, "v_proj": kv_heads * size}
            room |= {
                f"{at}self_attn.{name}.weight": (count, hidden) for name, count in rows.items()
            }
            room |= {
                f"{at}self_attn.{name}.bias": (count,) for name, count in rows.items() if qkv_bias
            }
            room |= {
                f"{at}self_attn.o_proj.weight": (hidden, heads * size),
                f"{at}input_layernorm.weight": (hidden,),
            }
            room |= {f"{at}self_attn.o_proj.bias": (hidden,)} if bias else {}
        if not block.ffn.no_op:
            if hasattr(block.ffn, "ffn_mult"):
                width = int(2 * block.ffn.ffn_mult * hidden / 3)
                width += -width % 256
            else:
                width = block.ffn.intermediate_size
            act = block.ffn.hidden_act if hasattr(block.ffn, "hidden_act") else raw.hidden_act
            assert act == "silu"
            rows = {"gate_proj": width, "up_proj": width}
            room |= {f"{at}mlp.{name}.weight": (count, hidden) for name, count in rows.items()}
            room |= {
                f"{at}mlp.{name}.bias": (count,) for name, count in rows.items() if raw.mlp_bias
            }
            room |= {
                f"{at}mlp.down_proj.weight": (hidden, width),
                f"{at}post_attention_layernorm.weight": (hidden,),
            }
            room |= {f"{at}mlp.down_proj.bias": (hidden,)} if raw.mlp_bias else {}
    return room


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("reader", ["json", "class"])
def test_what_vllm_reads(folders: dict[str, Path], name: str, reader: str) -> None:
    """The same of `config.json` itself and of the configuration class in the folder, which is what
    vLLM gets.
    """
    text = (folders[name] / "config.json").read_text()
    raw: Any = json.loads(text, object_hook=lambda values: SimpleNamespace(**values))
    if reader == "class":
        register()
        raw = AutoConfig.from_pretrained(folders[name])
    assert (raw.model_type, raw.architectures) == ("nemotron-nas", ["DeciLMForCausalLM"])
    tensors = load_file(folders[name] / "model.safetensors")
    assert {key: tuple(value.shape) for key, value in tensors.items()} == as_vllm_reads(raw)
    assert not raw.block_configs[0].attention.no_op, "vLLM cannot start without attention"
    assert (
        raw.num_attention_heads // raw.block_configs[0].attention.n_heads_in_group >= 1
    )  # how many KV heads the model is said to have
    config = source_of(name, folders[name]).dense.model.config
    for field in (
        "rms_norm_eps",
        "max_position_embeddings",
        "num_attention_heads",
        "hidden_act",
        "tie_word_embeddings",
    ):
        assert getattr(raw, field) == getattr(config, field), field
    rope = (
        raw.rope_parameters if isinstance(raw.rope_parameters, dict) else vars(raw.rope_parameters)
    )
    assert rope == config.rope_parameters
    for block in raw.block_configs:
        assert block.attention.replace_with_linear is block.ffn.replace_with_linear is False


def test_blocks_of_a_hard_shape(folders: dict[str, Path]) -> None:
    """0x48 2x0 0x0 1x16 3x0 0x5 of 3 KV heads and 6 query heads: the last two halves are one layer,
    the first attention is of zeros.
    """
    blocks = json.loads((folders["llama"] / "config.json").read_text())["block_configs"]
    here = {"no_op": False, "replace_with_linear": False}
    assert blocks == [
        {"attention": {**here, "n_heads_in_group": 6}, "ffn": {**here, "intermediate_size": 48}},
        {
            "attention": {**here, "n_heads_in_group": 3},
            "ffn": {"no_op": True, "replace_with_linear": False, "ffn_mult": None},
        },
        {"attention": {**here, "n_heads_in_group": 6}, "ffn": {**here, "intermediate_size": 16}},
        {"attention": {**here, "n_heads_in_group": 2}, "ffn": {**here, "intermediate_size": 5}},
    ]
    tensors = load_file(folders["llama"] / "model.safetensors")
    assert all(
        not value.any()
        for key, value in tensors.items()
        if key.startswith("model.layers.0.self_attn")
    )
    attention = [tensors[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkvo"]
    kept = attention[0].reshape(2, 3, 8, 48), attention[3].reshape(48, 2, 3, 8)
    assert not kept[0][:, 2].any()
    assert not kept[1][:, :, 2].any()
    dense = source_of("llama", folders["llama"]).dense.model.model.layers[1].self_attn
    assert torch.equal(kept[0][:, :2].reshape(32, 48), dense.q_proj.weight[:32])
    assert torch.equal(kept[1][:, :, :2].reshape(48, 32), dense.o_proj.weight[:, :32])
    assert torch.equal(attention[1], dense.k_proj.weight[:16])


def test_multiples_of_256_survive_rounding(folders: dict[str, Path]) -> None:
    """`ffn_mult` is a quotient in floating point, multiplied out again by its readers, who round
    down, then up to 256.
    """
    blocks = json.loads((folders["four heads"] / "config.json").read_text())["block_configs"]
    assert ["ffn_mult" in block["ffn"] for block in blocks] == [
        True,
        True,
        True,
        False,
        False,
        True,
    ]
    for hidden in (48, 576, 960, 2048, 3072, 4096, 5120, 8192):
        for channels in range(256, 40_000, 256):
            width = int(2 * (1.5 * channels / hidden) * hidden / 3)
            assert width + -width % 256 == channels


def test_registered_classes_open_it_without_its_code(folders: dict[str, Path]) -> None:
    register()
    register()
    model = AutoModelForCausalLM.from_pretrained(folders["four heads"], trust_remote_code=False)
    probe = load_file(folders["four heads"] / "probe.safetensors")
    with torch.inference_mode():
        torch.testing.assert_close(
            model(probe["input_ids"]).logits, probe["logits"], atol=TOLERANCE, rtol=0
        )


@pytest.mark.parametrize(
    "config",
    [tiny_config("olmo2"), tiny_config("gemma3_text"), tiny_config("mistral")],
    ids=["olmo2", "gemma3", "window"],
)
def test_what_cannot_be_expressed(config: PretrainedConfig) -> None:
    accounting = Accounting(config)
    (message,) = decilm.problems(config, accounting.family, accounting.geometry, accounting.dense)
    assert "decilm" in message
    assert "format=transformers" in message
