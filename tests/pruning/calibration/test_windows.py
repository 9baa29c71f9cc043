"""Which tokens windows hold, and how much is tokenized for them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from pruning.calibration.windows import first_windows, text_windows


def text_of(windows: Any) -> list[str]:
    return ["".join(chr(31 + token) for token in window) for window in windows]


class Counting:
    """Tokens that are characters, and how many of them each text had."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        self.lengths.append(len(text))
        return {"input_ids": [ord(character) - 31 for character in text]}


def test_the_tail_is_dropped(tokenizer: PreTrainedTokenizerFast) -> None:
    assert text_of(text_windows(tokenizer, "abcdefgh", 3)) == ["abc", "def"]
    assert text_of(text_windows(tokenizer, "abcdef", 3)) == ["abc", "def"]


@pytest.mark.parametrize("text", ["", "ab", "abc"])
def test_windows_are_whole_numbers_even_where_there_are_none(
    text: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    windows = text_windows(tokenizer, text, 3)
    assert windows.dtype == np.int64
    assert windows.shape == (len(text) // 3, 3)


def test_a_tokenizers_own_beginning_is_that_of_the_text() -> None:
    """But for families that have never seen a window without one: see Gemma's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<s>": 2}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    fast = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>")
    assert text_windows(fast, "abbab", 2).tolist() == [[2, 0], [1, 1], [0, 1]]


def test_a_text_longer_than_the_models_context_is_no_reason_to_warn(
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is cut into windows, which transformers does not know."""
    short = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token=chr(31), model_max_length=4
    )
    logger = logging.getLogger("transformers")
    # transformers lets its messages through to the root, where caplog listens, too, if CI is set.
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    try:
        assert len(text_windows(short, "abcdefgh", 4)) == 2
        assert caplog.messages == []
        short("abcdefgh")
        assert len(caplog.messages) == 1, "as it does by itself"
    finally:
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize(
    ("count", "length", "tokenized"),
    [
        (1, 4, [1]),  # one row is a window
        (3, 4, [3]),
        (2, 8, [2, 4]),  # two rows and what joins them are 10 characters
        (1, 16, [1, 2, 4]),
        (0, 4, [1]),
        (5, 16, [5, 10, 20]),
        (40, 4, [40]),  # more than there are
    ],
)
def test_no_more_than_twice_the_rows_that_it_takes_are_tokenized(
    count: int, length: int, tokenized: list[int]
) -> None:
    rows = [f"r{number:03d}" for number in range(20)]
    tokenizer: Any = Counting()
    windows = first_windows(tokenizer, rows, count, length)
    whole = "\n\n".join(rows)
    available = len(whole) // length
    assert text_of(windows) == [
        whole[index * length :][:length] for index in range(min(count, available))
    ]
    assert tokenizer.lengths == [len("\n\n".join(rows[:number])) for number in tokenized]


def test_rows_that_end_are_tokenized_once() -> None:
    tokenizer: Any = Counting()
    assert len(first_windows(tokenizer, ["abc", "def"], 2, 8)) == 1
    assert tokenizer.lengths == [8]
