"""What decides which calibration text a search sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Source = Literal["pydoc", "text", "alpaca", "wikitext2", "c4", "ptb", "tokens"]


SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True, slots=True)
class CalibrationSpec:
    """How to make a calibration set.

    For running text (`pydoc`, `wikitext2`, a text file) and `tokens`, a sample is one sequence. For
    rows (`alpaca`, `c4`, `ptb`, JSONL) it is one row: the drawn rows are joined with two newlines,
    tokenized as one text and cut into sequences (docs/concepts/method.md, "Calibration as
    published").

    Args:
        path: the file of `text` and `tokens`; for the named datasets a local copy to use instead of
            the hub.
        column: field of each row that holds the text; None is the dataset's own.
    """

    source: Source
    num_block_samples: int
    num_width_samples: int
    num_heldout_samples: int
    sequence_length: int
    seed: int
    path: str | None = None
    column: str | None = None
