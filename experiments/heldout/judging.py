"""Text that a run has not seen, and the NLL of a shape on it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import torch
from omegaconf import OmegaConf

from pipelines.config.calibration import CalibrationConfig
from pipelines.runs.saved_run import PastRun
from pruning.calibration.build import make_calibration
from pruning.calibration.sources import measured_text
from pruning.calibration.token_sets import Tokens, heldout_sources
from pruning.calibration.windows import text_windows
from pruning.errors import InputError
from pruning.importance.channel_order import ChannelOrder
from pruning.models.loaded_model import LoadedModel
from pruning.recovery.prepared import prepared
from pruning.scoring.masking import masked
from pruning.scoring.nll import sequence_nll
from pruning.shape import ModelShape

BATCH_TOKENS = 2048


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line of a program that judges runs, with what they all take; torch has its
    threads then.
    """
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--windows", type=int, default=64, help="at most, of each text")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.windows < 2:
        parser.error(f"--windows: {given.windows}; a standard error takes 2")
    torch.set_num_threads(given.threads)
    return given


def heldout(run: PastRun, files: Sequence[str], num_windows: int) -> dict[str, Tokens]:
    """int64 [windows, tokens] of the held-out part of the run's own text and of files, by name.

    Raises:
        InputError: the run's text is not there any more or is another one by now, so that what it
            has seen is not known; or nothing is left to judge by.
    """
    typed = OmegaConf.merge(OmegaConf.structured(CalibrationConfig), run.config.calibration)
    calibration = OmegaConf.to_object(typed)
    assert isinstance(calibration, CalibrationConfig)
    count = num_windows * max(1, len(calibration.sources))
    spec = replace(calibration.spec(), num_heldout_samples=count)
    sets = make_calibration(
        spec, run.checkpoint.tokenizer, vocab_size=run.checkpoint.config().vocab_size
    )
    for name in ("block", "width"):
        was = run.record["identity"][f"calibration.{name}"]
        if sets.sets()[name].fingerprint != was:
            raise InputError(
                f"{run.folder}: its text has changed since (the {name} set had fingerprint {was}), "
                "so that what it has seen is not known; give the text of then back"
            )
    parts = sets.parts()
    names = heldout_sources(parts)
    found = {source: parts[name].input_ids for name, source in names.items()}
    if not found and sets.heldout is not None:
        found["held-out text"] = sets.heldout.input_ids
    for file in files:
        text = measured_text(file, option="--text", folder=None)
        found[Path(file).stem] = text_windows(
            run.checkpoint.tokenizer(), text, spec.sequence_length
        )
    found = {name: windows[:num_windows] for name, windows in found.items() if len(windows) > 1}
    if not found:
        raise InputError(
            f"{run.folder}: its text holds no two windows of {spec.sequence_length} tokens out; "
            "give others with --text"
        )
    return found


def nll(run: PastRun, order: ChannelOrder, shape: ModelShape, windows: Tokens) -> list[float]:
    """Of each window, nats per predicted token."""
    loaded = prepared(LoadedModel.of(run.checkpoint.load(dtype=run.dtype)), order)
    length = windows.shape[1]
    with masked(loaded, shape):
        batches = torch.from_numpy(windows).split(max(1, BATCH_TOKENS // length))
        sums = torch.cat([sequence_nll(loaded.model, batch) for batch in batches])
    each: list[float] = (sums / (length - 1)).tolist()
    return each


def difference(mine: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean over windows and its paired standard error, nats per token."""
    apart = [one - other for one, other in zip(mine, theirs, strict=True)]
    return fmean(apart), stdev(apart) / math.sqrt(len(apart))
