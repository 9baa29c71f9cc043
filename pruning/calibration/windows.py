"""Running text cut into windows of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from pruning.calibration.token_sets import Tokens
from pruning.models.families import begins_with_bos


def text_windows(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> Tokens:
    """A text tokenized as a whole and cut into windows; the tail is dropped
    (docs/concepts/method.md, "Calibration as published").

    Where a family has never seen a text without BOS, such as Gemma, each window begins with it:
    perplexity on one without is several times as high.

    Returns:
        int64 [windows, length]; no windows if the text is too short.
    """
    if begins_with_bos(tokenizer):
        return np.insert(
            _cut(_tokenize(tokenizer, text, add_special_tokens=False), length - 1),
            0,
            tokenizer.bos_token_id,
            axis=1,
        )
    return _cut(_tokenize(tokenizer, text), length)


def first_windows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[str], count: int, length: int
) -> Tokens:
    """The first windows of rows joined with two newlines. No more rows are tokenized than that
    takes, but for a factor of two: a data set has hundreds of thousands.

    Returns:
        int64 [at most count, length].
    """
    num_rows = max(1, count)
    while True:
        windows = text_windows(tokenizer, "\n\n".join(rows[:num_rows]), length)
        if len(windows) >= count or num_rows >= len(rows):
            return windows[:count]
        num_rows *= 2


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = True
) -> Sequence[int]:
    ids: Sequence[int] = (
        tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        if text
        else []
    )
    return ids


def _cut(ids: Sequence[int], length: int) -> Tokens:
    """Consecutive sequences; the tail is dropped."""
    count = len(ids) // length
    return np.asarray(ids[: count * length], dtype=np.int64).reshape(count, length)
