"""Baichuan checkpoints become Llama ones, without the code that they come with.

The 7B models are Llamas whose q, k and v lie behind one another in one matrix, `W_pack`. Baichuan2
also divides each row of its head by its L2 norm before it multiplies (its `NormHead`), which is
done here once. The 13B models encode positions with ALiBi, which no class of transformers computes
for this layout: they can be counted, not run. (arXiv 2309.10305, sections 2.1 to 2.5.)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from pruning.canonical_json import dump_json
from pruning.errors import InputError
from pruning.models.cache import build_once
from pruning.models.shards import write_shards
from pruning.models.stored_weights import opened

_VOCABULARY_OF_2 = 125696
_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)
_FILES = ("tokenizer.model", "special_tokens_map.json", "generation_config.json")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_MERGED, _HEAD, _BUFFERS = "self_attn.W_pack.weight", "lm_head.weight", ".rotary_emb."


def is_baichuan(raw: Mapping[str, Any]) -> bool:
    """Whether that is the `config.json` of a Baichuan checkpoint."""
    return raw.get("model_type") == "baichuan"


def llama_config(raw: Mapping[str, Any]) -> LlamaConfig:
    """The Llama of the same sizes. `raw` is the `config.json` of a Baichuan checkpoint."""
    config = LlamaConfig(**{name: raw[name] for name in _SAME if name in raw})
    config.max_position_embeddings = (
        raw.get("max_position_embeddings") or raw.get("model_max_length") or 4096
    )
    config.architectures = ["LlamaForCausalLM"]
    return config


def uses_alibi(raw: Mapping[str, Any]) -> bool:
    """The 13B models say how long a sequence may be under another name."""
    return "max_position_embeddings" not in raw


def refuse_alibi(raw: Mapping[str, Any], folder: Path) -> None:
    """Raises InputError for a model that would be computed wrongly."""
    if uses_alibi(raw):
        raise InputError(
            f"model.path: {folder} is a Baichuan model with ALiBi positions (the 13B ones), "
            "which cannot be run here; its counts and its plan can be made "
            "(multipruner plan, multipruner reproduce mode=counts), and Baichuan2-7B can be pruned"
        )


def converted(folder: Path, raw: Mapping[str, Any], weights: Sequence[Path], cache: Path) -> Path:
    """The same model as a Llama's folder in `cache`, made on first use, one tensor at a time.

    Not for models with ALiBi.
    """
    target = cache / f"{folder.name}-{_key(folder, weights)}"
    return build_once(target, lambda scratch: _write(folder, raw, weights, scratch))


def _write(folder: Path, raw: Mapping[str, Any], weights: Sequence[Path], target: Path) -> None:
    with ExitStack() as files:
        shards = [files.enter_context(opened(path)) for path in weights]
        tensors = partial(_tensors, shards, norm_head=_has_norm_head(raw))
        dtype = next(tensors())[1].dtype
        write_shards(target, tensors, dtype=dtype)
    config = llama_config(raw)
    config.dtype = dtype
    config.save_pretrained(target)
    for name in _FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    if (folder / "tokenizer.model").is_file():
        (target / "tokenizer_config.json").write_text(
            dump_json(_tokenizer_config(folder)), encoding="utf-8"
        )


def _tensors(files: Sequence[Any], *, norm_head: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of the Llama, one at a time.

    Rotary embeddings are in Llama's order already, so that rows stay where they are.
    """
    for file in files:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            if _BUFFERS in name:
                continue
            tensor = file.get_tensor(name)
            if name.endswith(_MERGED):
                for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                    yield name.replace("W_pack", f"{part}_proj"), rows
            elif name == _HEAD and norm_head:
                yield name, torch.nn.functional.normalize(tensor.float()).to(tensor.dtype)
            else:
                yield name, tensor


def _has_norm_head(raw: Mapping[str, Any]) -> bool:
    """Baichuan2's configurations differ from those of the first Baichuan in their vocabulary and in
    the loss of the head.
    """
    return raw.get("vocab_size") == _VOCABULARY_OF_2 or "z_loss_weight" in raw


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    """SentencePiece's model as it is, without a token in front."""
    path = folder / "tokenizer_config.json"
    given: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    tokens = {
        name: given[name]["content"] if isinstance(given[name], dict) else given[name]
        for name in _SPECIAL_TOKENS
        if given.get(name)
    }
    own = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    return own | {"add_prefix_space": _has_dummy_prefix(folder / "tokenizer.model")} | tokens


def _has_dummy_prefix(path: Path) -> bool:
    """Whether SentencePiece puts a space in front of a text."""
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    model.ParseFromString(path.read_bytes())
    return bool(model.normalizer_spec.add_dummy_prefix)


def _key(folder: Path, weights: Sequence[Path]) -> str:
    """Of the bytes of the configuration and of every weight file: sizes and dates may stay the
    same where a weight was edited.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in weights:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
