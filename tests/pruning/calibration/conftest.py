"""Texts, and calibration sets of them in tokens that are characters."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pruning.calibration.build import make_calibration
from pruning.calibration.spec import CalibrationSpec, MixtureSpec
from pruning.calibration.token_sets import Calibration


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; unknown ones are 0."""
    vocabulary = {chr(code): index for index, code in enumerate(range(31, 127))}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token=chr(31)))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token=chr(31))


def make(
    spec: CalibrationSpec | MixtureSpec,
    tokenizer: PreTrainedTokenizerFast | None = None,
    vocab_size: int = 96,
) -> Calibration:
    def no_tokenizer() -> PreTrainedTokenizerFast:
        raise AssertionError("this source needs no tokenizer")

    return make_calibration(
        spec, (lambda: tokenizer) if tokenizer else no_tokenizer, vocab_size=vocab_size
    )


def write_text(path: Path, characters: int = 400) -> Path:
    path.write_text(
        "\n\n".join(f"{number:03d} words of text" for number in range(characters // 20))
    )
    return path
