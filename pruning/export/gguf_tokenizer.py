"""A tokenizer in the fields that llama.cpp reads: copied from a GGUF, or made from the files of a
checkpoint.

llama.cpp has its own tokenizers and only names what they are (`tokenizer.ggml.model`,
`tokenizer.ggml.pre`), so a tokenizer that is not exactly one of them is refused: text would be cut
in other places than in training, and nothing would say so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, Keys, TokenType
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pruning.errors import InputError

_PREFIX = "tokenizer."
_WORD, _TAIL = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"

PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    ("bytes of words",): "gpt-2",
    ("digits", "bytes of words"): "smollm",
    (_WORD + r"\p{N}{1,3}" + _TAIL, "bytes"): "llama-bpe",
    (_WORD + r"\p{N}" + _TAIL, "bytes"): "qwen2",
    (_CASED + r"\p{N}" + _TAIL.replace(r"[\r\n]*|\s*", r"[\r\n/]*|\s*"), "bytes"): "tekken",
}
"""How text is cut before merges, and llama.cpp's name for it (`convert_hf_to_gguf.py`,
`get_vocab_base_pre`).
"""


@dataclass(frozen=True, slots=True)
class Field:
    """One key of the file."""

    key: str
    value: Any
    type: GGUFValueType
    sub_type: GGUFValueType | None = None


def tokenizer_fields(
    folder: Path, vocab_size: int, tokenizer_gguf: Path | None = None
) -> list[Field]:
    """The tokenizer of a model whose embedding has `vocab_size` rows.

    Args:
        folder: with the tokenizer's files, as transformers reads them.
        tokenizer_gguf: copied from instead.

    Raises:
        InputError: there is none, it is none of llama.cpp's, or it has another number of tokens.
    """
    if tokenizer_gguf is not None:
        return _copied(tokenizer_gguf, vocab_size)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        data = json.loads(tokenizer.backend_tokenizer.to_str())
    except (OSError, ValueError, AttributeError, ImportError) as error:
        raise _refused(
            folder,
            (
                "transformers cannot open it "
                f"({(str(error).strip().splitlines() or [type(error).__name__])[0]})"
            ),
        ) from error
    model = data["model"]
    if model["type"] != "BPE":
        raise _refused(folder, f"its model is {model['type']}, and only BPE is known here")
    tokens, types = _tokens(data, vocab_size, folder)
    fields = (
        _sentencepiece(data, tokens, types, folder)
        if model.get("byte_fallback")
        else _byte_level(data, folder)
    )
    fields += [
        _strings(Keys.Tokenizer.LIST, tokens),
        Field(Keys.Tokenizer.TOKEN_TYPE, types, GGUFValueType.ARRAY, GGUFValueType.INT32),
    ]
    return fields + _special(tokenizer)


def _copied(path: Path, vocab_size: int) -> list[Field]:
    try:
        found = {
            key: field for key, field in GGUFReader(path).fields.items() if key.startswith(_PREFIX)
        }
    except (OSError, ValueError) as error:
        raise InputError(
            f"tokenizer_gguf: {path} is not a GGUF file that can be read: {error}"
        ) from error
    if Keys.Tokenizer.LIST not in found:
        raise InputError(
            f"tokenizer_gguf: {path} holds no tokenizer ({Keys.Tokenizer.LIST}); give a GGUF of "
            "the dense model"
        )
    count = len(found[Keys.Tokenizer.LIST].data)
    if count != vocab_size:
        raise InputError(
            f"tokenizer_gguf: {path} has {count} tokens, the model has {vocab_size}; give a GGUF "
            "of the dense model"
        )
    return [
        Field(
            key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
        )
        for key, field in found.items()
    ]


def _tokens(data: Mapping[str, Any], vocab_size: int, folder: Path) -> tuple[list[str], list[int]]:
    """Text and kind of every row of the embedding.

    Rows without a token, which many models have at the end, are named for their number.
    """
    unknown = data["model"].get("unk_token")
    kinds: dict[int, tuple[str, TokenType]] = {}
    for text, number in data["model"]["vocab"].items():
        byte = len(text) == 6 and text.startswith("<0x") and data["model"].get("byte_fallback")
        kinds[number] = (
            text,
            TokenType.UNKNOWN if text == unknown else TokenType.BYTE if byte else TokenType.NORMAL,
        )
    for added in data["added_tokens"]:
        if kinds.get(added["id"], ("", TokenType.NORMAL))[1] is not TokenType.UNKNOWN:
            kinds[added["id"]] = (
                added["content"],
                TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED,
            )
    if max(kinds) >= vocab_size:
        raise _refused(
            folder,
            (
                f"it has the token {max(kinds)} {kinds[max(kinds)][0]!r}, and the model has "
                f"{vocab_size} only"
            ),
        )
    rows = [kinds.get(number, (f"[PAD{number}]", TokenType.UNUSED)) for number in range(vocab_size)]
    return [text for text, _ in rows], [int(kind) for _, kind in rows]


def _byte_level(data: Mapping[str, Any], folder: Path) -> list[Field]:
    """BPE over bytes, as in GPT-2 and Llama 3. llama.cpp does not normalize; NFC changes only text
    that is written unusually.
    """
    if (data["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        raise _refused(folder, f"it normalizes text ({data['normalizer']['type']})")
    pre = PRE_TOKENIZERS.get(_steps(data["pre_tokenizer"]))
    if pre is None:
        raise _refused(
            folder,
            f"it cuts text before merging as none of {', '.join(PRE_TOKENIZERS.values())} does",
        )
    merges = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]
    ]
    if not merges:
        raise _refused(folder, "it has no merges, and a GGUF holds no empty list")
    return [
        Field(Keys.Tokenizer.MODEL, "gpt2", GGUFValueType.STRING),
        Field(Keys.Tokenizer.PRE, pre, GGUFValueType.STRING),
        _strings(Keys.Tokenizer.MERGES, merges),
        Field(Keys.Tokenizer.ADD_PREFIX, False, GGUFValueType.BOOL),
    ]


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What is done to text before merging, in words that `PRE_TOKENIZERS` knows where it is one of
    those.
    """
    if pre_tokenizer is None:
        return ()
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return tuple(step for inner in pre_tokenizer["pretokenizers"] for step in _steps(inner))
    if kind == "ByteLevel" and not pre_tokenizer["add_prefix_space"]:
        return ("bytes of words" if pre_tokenizer["use_regex"] else "bytes",)
    if kind == "Digits" and pre_tokenizer["individual_digits"]:
        return ("digits",)
    if (
        kind == "Split"
        and "Regex" in pre_tokenizer["pattern"]
        and pre_tokenizer["behavior"] == "Isolated"
        and not pre_tokenizer["invert"]
    ):
        return (pre_tokenizer["pattern"]["Regex"],)
    return (f"unknown {kind}",)


def _sentencepiece(
    data: Mapping[str, Any], tokens: list[str], types: list[int], folder: Path
) -> list[Field]:
    """BPE over characters with bytes to fall back on, as in Llama 2. llama.cpp merges the pair
    whose result scores highest; SentencePiece's scores fall in the order of its merges, which is
    what transformers keeps of them.
    """
    normalizers, pre = (
        _flat(data["normalizer"], "normalizers"),
        _flat(data["pre_tokenizer"], "pretokenizers"),
    )
    metaspace = [
        step for step in pre if step["type"] == "Metaspace" and not step.get("split", True)
    ]
    if any(step["type"] not in ("Prepend", "Replace") for step in normalizers) or len(
        metaspace
    ) != len(pre):
        raise _refused(
            folder,
            (
                "it prepares text otherwise than Llama 2 does "
                f"({[step['type'] for step in (*normalizers, *pre)]})"
            ),
        )
    prefix = any(step["type"] == "Prepend" for step in normalizers) or any(
        step["prepend_scheme"] != "never" for step in metaspace
    )
    rank: dict[str, int] = {}
    for number, merge in enumerate(data["model"]["merges"]):
        rank.setdefault(
            (merge if isinstance(merge, str) else " ".join(merge)).replace(" ", ""), number
        )
    last = len(data["model"]["merges"])
    scores = [
        0.0
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE)
        else -float(rank.get(text, last))
        for text, kind in zip(tokens, types, strict=True)
    ]
    return [
        Field(Keys.Tokenizer.MODEL, "llama", GGUFValueType.STRING),
        Field(Keys.Tokenizer.PRE, "default", GGUFValueType.STRING),
        Field(Keys.Tokenizer.SCORES, scores, GGUFValueType.ARRAY, GGUFValueType.FLOAT32),
        Field(Keys.Tokenizer.ADD_PREFIX, prefix, GGUFValueType.BOOL),
    ]


def _flat(step: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    return list(step[inner]) if step["type"] == "Sequence" else [step]


def _special(tokenizer: PreTrainedTokenizerBase) -> list[Field]:
    """Numbers of the special tokens, whether text begins or ends with them, and the template."""
    numbers = {
        Keys.Tokenizer.BOS_ID: tokenizer.bos_token_id,
        Keys.Tokenizer.EOS_ID: tokenizer.eos_token_id,
        Keys.Tokenizer.UNK_ID: tokenizer.unk_token_id,
        Keys.Tokenizer.PAD_ID: tokenizer.pad_token_id,
    }
    fields = [
        Field(key, number, GGUFValueType.UINT32)
        for key, number in numbers.items()
        if number is not None
    ]
    example = list(tokenizer("a").input_ids)
    fields.append(
        Field(
            Keys.Tokenizer.ADD_BOS,
            bool(example) and example[0] == tokenizer.bos_token_id,
            GGUFValueType.BOOL,
        )
    )
    fields.append(
        Field(
            Keys.Tokenizer.ADD_EOS,
            bool(example) and example[-1] == tokenizer.eos_token_id,
            GGUFValueType.BOOL,
        )
    )
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str):
        fields.append(Field(Keys.Tokenizer.CHAT_TEMPLATE, template, GGUFValueType.STRING))
    return fields


def _strings(key: str, values: list[str]) -> Field:
    return Field(key, values, GGUFValueType.ARRAY, GGUFValueType.STRING)


def _refused(folder: Path, why: str) -> InputError:
    return InputError(
        f"format: the tokenizer in {folder} cannot be written for llama.cpp: {why}. Give a GGUF "
        "of the dense model to copy it from (tokenizer_gguf=FILE)"
    )
