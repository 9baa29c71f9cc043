"""Any text -> fixed token sequences with a fingerprint: one set for the block stage, one for the
width stages, one held out for the report.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers import PreTrainedTokenizerBase

from pruning.calibration.mixture import mixed
from pruning.calibration.sources import required_path, running_text, source_rows
from pruning.calibration.spec import CalibrationSpec, MixtureSpec
from pruning.calibration.token_sets import Calibration, TokenSet
from pruning.calibration.windows import first_windows, text_windows
from pruning.errors import InputError

log = logging.getLogger(__name__)


def make_calibration(
    spec: CalibrationSpec | MixtureSpec,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    *,
    vocab_size: int,
) -> Calibration:
    """Builds the three sets.

    Args:
        tokenizer: called only by sources that are text.

    Raises:
        InputError: missing or unreadable data, too little of it, or token ids outside the
            vocabulary; of a mixture, what is wrong with any of its sources.
    """
    if isinstance(spec, MixtureSpec):
        return _mixture(spec, cache(tokenizer), vocab_size)
    if spec.source == "tokens":
        calibration = _from_tokens(spec)
    else:
        text = running_text(spec)
        if text is not None:
            calibration = _from_text(spec, tokenizer(), *text)
        elif spec.rows_are_samples:
            calibration = _from_rows(spec, tokenizer())
        else:
            calibration = _sequences_of_rows(spec, tokenizer())
    num_heldout = len(calibration.heldout.input_ids) if calibration.heldout else 0
    if num_heldout < spec.num_heldout_samples:
        log.warning(
            "calibration.num_heldout_samples: %d asked for%s, %d left: the held-out perplexity "
            "is %s",
            spec.num_heldout_samples,
            "" if spec.option == "calibration" else f" of {spec.option}",
            num_heldout,
            f"over {num_heldout} sequences" if num_heldout else "not measured",
        )
    _check_vocabulary(spec, calibration, vocab_size)
    return calibration


def _mixture(
    spec: MixtureSpec, tokenizer: Callable[[], PreTrainedTokenizerBase], vocab_size: int
) -> Calibration:
    problems, parts = spec.problems(), dict[str, Calibration]()
    for name, part in spec.parts().items() if not problems else ():
        try:
            parts[name] = make_calibration(part, tokenizer, vocab_size=vocab_size)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return mixed(parts)


def _check_vocabulary(spec: CalibrationSpec, calibration: Calibration, vocab_size: int) -> None:
    for name, tokens in calibration.sets().items():
        if not tokens.num_sequences:
            continue
        low, high = int(tokens.input_ids.min()), int(tokens.input_ids.max())
        if low < 0 or high >= vocab_size:
            raise InputError(
                f"{spec.option}: the {name} set has token id {low if low < 0 else high}, outside "
                f"the model's vocabulary 0..{vocab_size - 1}. "
                "Was it made with another model's tokenizer?"
            )


def _from_tokens(spec: CalibrationSpec) -> Calibration:
    path = required_path(spec, "a safetensors file with input_ids [sequences, length]")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{spec.option}.path: {path} is not a readable safetensors file: {error}"
        ) from error
    input_ids = tensors.get("input_ids")
    if input_ids is None or input_ids.ndim != 2 or not np.issubdtype(input_ids.dtype, np.integer):
        raise InputError(
            f"{spec.option}.path: {path} must hold integer input_ids [sequences, length]; it holds "
            f"{_describe(tensors)}"
        )
    if input_ids.shape[1] < spec.sequence_length:
        raise InputError(
            f"calibration.sequence_length: {spec.sequence_length}, but the sequences in {path} "
            f"have {input_ids.shape[1]} tokens"
        )
    ids = input_ids[:, : spec.sequence_length].astype(np.int64)
    needed = max(spec.num_block_samples, spec.num_width_samples)
    if len(ids) < needed:
        raise InputError(f"{spec.option}: {needed} sequences asked for, {path} has {len(ids)}")
    spare = ids[needed : needed + spec.num_heldout_samples]
    return Calibration(
        TokenSet(ids[: spec.num_block_samples]),
        TokenSet(ids[: spec.num_width_samples]),
        TokenSet(spare) if len(spare) else None,
    )


def _from_text(
    spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase, text: str, heldout_text: str
) -> Calibration:
    """Sequences drawn from running text: first those of the width stages, then those of the block
    stage, from what is left.
    """
    sequences = text_windows(tokenizer, text, spec.sequence_length)
    width, block = spec.num_width_samples, spec.num_block_samples
    _check_number(spec, len(sequences))
    drawn = random.Random(spec.seed).sample(range(len(sequences)), width + block)
    heldout = text_windows(tokenizer, heldout_text, spec.sequence_length)[
        : spec.num_heldout_samples
    ]
    return Calibration(
        TokenSet(sequences[drawn[width:]]),
        TokenSet(sequences[drawn[:width]]),
        TokenSet(heldout) if len(heldout) else None,
    )


def _from_rows(spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase) -> Calibration:
    """Rows drawn as published: seed once, first the rows of the width stages, then, from all rows
    again, those of the block stage.
    """
    rows, heldout_rows = source_rows(spec)
    generator = random.Random(spec.seed)
    sets = []
    for name, count in (
        ("num_width_samples", spec.num_width_samples),
        ("num_block_samples", spec.num_block_samples),
    ):
        if count > len(rows):
            raise InputError(
                f"calibration.{name}: {count}, but {spec.source} has {len(rows)} rows to draw from"
            )
        chosen = [rows[index] for index in generator.sample(range(len(rows)), count)]
        sequences = text_windows(tokenizer, "\n\n".join(chosen), spec.sequence_length)
        if not len(sequences):
            raise InputError(
                f"calibration.{name}: {count} rows are shorter than one sequence of "
                f"{spec.sequence_length} tokens. "
                "Ask for more rows or a smaller calibration.sequence_length"
            )
        sets.append(TokenSet(sequences))
    heldout = text_windows(tokenizer, "\n\n".join(heldout_rows), spec.sequence_length)[
        : spec.num_heldout_samples
    ]
    return Calibration(
        block=sets[1], width=sets[0], heldout=TokenSet(heldout) if len(heldout) else None
    )


def _sequences_of_rows(spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase) -> Calibration:
    """Rows in an order that the seed draws, joined for as many sequences as are asked for: first
    those of the width stages, then those of the block stage.
    """
    rows, heldout_rows = source_rows(spec)
    width, block = spec.num_width_samples, spec.num_block_samples
    drawn = random.Random(spec.seed).sample(rows, len(rows))
    sequences = first_windows(tokenizer, drawn, width + block, spec.sequence_length)
    _check_number(spec, len(sequences))
    heldout = first_windows(tokenizer, heldout_rows, spec.num_heldout_samples, spec.sequence_length)
    return Calibration(
        TokenSet(sequences[width:]),
        TokenSet(sequences[:width]),
        TokenSet(heldout) if len(heldout) else None,
    )


def _check_number(spec: CalibrationSpec, num_sequences: int) -> None:
    """Whether a text is long enough."""
    width, block = spec.num_width_samples, spec.num_block_samples
    asked = f"{width} + {block}" if width else str(block)
    names = " (num_width_samples + num_block_samples)" if width else ""
    if num_sequences < width + block:
        raise InputError(
            f"{spec.option}: {asked} sequences of {spec.sequence_length} tokens asked for"
            f"{names}, the text gives {num_sequences}. Ask for fewer or shorter sequences, or give "
            "more text"
        )


def _describe(tensors: dict[str, npt.NDArray[Any]]) -> str:
    return (
        ", ".join(f"{name} {list(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items())
        or "nothing"
    )
