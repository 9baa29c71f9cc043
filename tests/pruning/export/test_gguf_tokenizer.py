"""Tokenizers in GGUF: llama.cpp cuts text as transformers does, or the file is not written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from pruning.errors import InputError
from pruning.export import gguf
from pruning.export.gguf_tokenizer import PRE_TOKENIZERS, tokenizer_fields
from pruning.export.source import ExportSource
from pruning.models.find import find_checkpoint
from pruning.models.loaded_model import LoadedModel
from tests.pruning.export.gguf_models import NASTY, byte_level, config_of, source_of
from tests.pruning.export.llama_cpp import ask, needs_llama_cpp


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(folder)
    return folder


def like_llama2() -> PreTrainedTokenizerFast:
    """BPE over characters with bytes to fall back on, a bar for each space, and one before the
    text.
    """
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trained.train_from_iterator(
        [NASTY[0], "the theme thinks then"] * 5,
        trainers.BpeTrainer(vocab_size=50, show_progress=False),
    )
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
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _split(pattern: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer of a key of `PRE_TOKENIZERS`."""
    known = {
        "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        "bytes of words": pre_tokenizers.ByteLevel(add_prefix_space=False),
    }
    known["digits"] = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence(
        [known.get(step) or pre_tokenizers.Split(Regex(step), "isolated") for step in pattern]
    )


@needs_llama_cpp
@pytest.mark.parametrize("name", [*PRE_TOKENIZERS.values(), "llama 2"])
def test_llama_cpp_cuts_text_as_transformers_does(name: str, tmp_path: Path) -> None:
    pattern = next((pattern for pattern, known in PRE_TOKENIZERS.items() if known == name), None)
    tokenizer = (
        like_llama2()
        if pattern is None
        else byte_level(_split(pattern), ignore_merges=name in ("llama-bpe", "tekken"))
    )
    tokenizer.save_pretrained(tmp_path)
    source = source_of("llama", tmp_path)
    gguf.write(tmp_path, source)
    fields = {
        key: field.contents()
        for key, field in GGUFReader(tmp_path / "model-f32.gguf").fields.items()
    }
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == (
        ("gpt2", name) if pattern else ("llama", "default")
    )
    assert fields["tokenizer.ggml.add_bos_token"] == (pattern is None)
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    )
    answer = ask(tmp_path / "model-f32.gguf", tmp_path, [5], texts=NASTY)
    for text, found in zip(NASTY, answer.texts, strict=True):
        assert found == tokenizer(text).input_ids, text


def test_a_tokenizer_is_copied_from_a_gguf(tokenizer_folder: Path, tmp_path: Path) -> None:
    gguf.write(tmp_path, source_of("llama", tokenizer_folder))
    copied = tmp_path / "copied"
    copied.mkdir()
    gguf.write(
        copied,
        source_of("llama", tmp_path / "no tokenizer here"),
        tokenizer_gguf=tmp_path / "model-f32.gguf",
    )
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
            lambda: byte_level(
                pre_tokenizers.Sequence(
                    [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
                )
            ),
            "as none of gpt-2, smollm",
        ),
        (
            lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
            "as none of gpt-2, smollm",
        ),
        (_normalized, "Lowercase"),
        (
            lambda: PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, "<unk>"))
            ),
            "WordLevel",
        ),
        (
            lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), merges=False),
            "it has no merges",
        ),
        (None, "cannot open it"),
    ],
    ids=["cuts", "prefix", "normalizes", "words", "no merges", "none"],
)
def test_unknown_tokenizers_are_refused(tokenizer, reason: str, tmp_path: Path) -> None:
    if tokenizer is not None:
        tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"{reason}.*tokenizer_gguf=FILE"):
        gguf.write(tmp_path, source_of("llama", tmp_path))
    assert not list(tmp_path.glob("*.gguf"))
    assert re.search(reason, gguf.tokenizer_problems(tmp_path, config_of("llama"))[0])


def test_a_tokenizer_with_too_many_tokens_is_refused(tokenizer_folder: Path) -> None:
    with pytest.raises(InputError, match="the model has 100 only"):
        tokenizer_fields(tokenizer_folder, 100)


@pytest.mark.data
@needs_llama_cpp
def test_a_sentencepiece_tokenizer_that_is_used(shared: Path, tmp_path: Path) -> None:
    checkpoint = find_checkpoint(str(shared / "models" / "stories260K"))
    dense = LoadedModel.of(checkpoint.load(dtype="float32"))
    gguf.write(
        tmp_path, ExportSource(dense, dense.geometry.dense, checkpoint.folder, torch.float32)
    )
    tokenizer = checkpoint.tokenizer()
    texts = (*NASTY, "Once upon a time, there was a little girl named Lily. She's 3!")
    answer = ask(
        tmp_path / "model-f32.gguf",
        tmp_path,
        tokenizer(texts[-1]).input_ids,
        generate=16,
        texts=texts,
    )
    assert answer.texts == [tokenizer(text).input_ids for text in texts]
    prompt = torch.tensor([tokenizer(texts[-1]).input_ids])
    assert (
        answer.generated
        == dense.model.generate(prompt, max_new_tokens=16, do_sample=False)[
            0, prompt.shape[1] :
        ].tolist()
    )
