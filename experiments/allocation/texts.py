"""Three texts, each in a part to collect statistics from, a part to select on, and a part to judge
by, which nothing else sees.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

Windows = npt.NDArray[np.int64]
LENGTH = 1024
SOURCES = ("alpaca", "wikitext2", "c4")
NUM_STATISTICS, NUM_JUDGED = 85, 160
"""Windows of each source; Alpaca's sample has 96 to judge by."""

_SEED = 100


class Texts:
    """Windows of `LENGTH` tokens of every source.

    Args:
        folder: with alpaca.jsonl, c4.jsonl (column `text`), wikitext2.valid.raw and
            wikitext2.test.raw. The first halves of the rows, and the validation split, are for
            statistics and selection; the rest is judged by.
    """

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.seen: dict[str, Windows] = {}
        self.judged: dict[str, Windows] = {}
        for source, (seen, judged) in _read(folder):
            self.seen[source] = _windows(tokenizer, seen)
            self.judged[source] = _windows(tokenizer, judged)[:NUM_JUDGED]

    def statistics(self) -> Windows:
        """The same number of windows of each source, drawn once."""
        return np.concatenate(
            [self.seen[source][self._shuffled(source)[:NUM_STATISTICS]] for source in SOURCES]
        )

    def selection(self, num_windows: int, seed: int) -> Windows:
        """Windows to select on, a third from each source, none of them in the statistics."""
        drawn = []
        for source in SOURCES:
            rest = np.random.default_rng(seed).permutation(self._shuffled(source)[NUM_STATISTICS:])
            drawn.append(self.seen[source][np.sort(rest[: num_windows // len(SOURCES)])])
        return np.concatenate(drawn)

    def _shuffled(self, source: str) -> npt.NDArray[np.int64]:
        return np.random.default_rng(_SEED).permutation(len(self.seen[source]))


def _read(folder: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    for source in SOURCES:
        if source == "wikitext2":
            parts = [(folder / f"wikitext2.{split}.raw").read_text() for split in ("valid", "test")]
            yield source, (parts[0], parts[1])
            continue
        lines = (folder / f"{source}.jsonl").read_text().split("\n")
        rows = [json.loads(line)["text"] for line in lines if line]
        half = len(rows) // 2
        yield source, ("\n\n".join(rows[:half]), "\n\n".join(rows[half:]))


def _windows(tokenizer: PreTrainedTokenizerBase, text: str) -> Windows:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    count = len(ids) // LENGTH
    return np.asarray(ids[: count * LENGTH], dtype=np.int64).reshape(count, LENGTH)
