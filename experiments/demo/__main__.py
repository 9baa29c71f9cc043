"""Perplexity of the shapes of a run on held-out windows of its own calibration text:
`python -m experiments.demo RUN [RUN ...] --windows 64`.

Of an allocation: dense, the uniform shape that it starts from with and without compensation, and
the allocation, with the paired standard error of its difference from uniform. Of other searches:
what they came to. One thread, in the type of the run.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean, stdev

import torch
from omegaconf import OmegaConf

from pipelines.config.calibration import CalibrationConfig
from pipelines.runs.files import ALLOCATION
from pipelines.runs.saved_run import PastRun, read_run
from pruning.calibration.build import make_calibration
from pruning.compensation.least_squares import prepared
from pruning.importance.channel_order import ChannelOrder
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.scoring.nll import sequence_nll
from pruning.search.allocation_result import Allocation
from pruning.shape import ModelShape

BATCH_SIZE = 8


def main() -> None:
    """Prints a table for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--windows", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for folder in given.runs:
        run = read_run(folder)
        windows = heldout(run, given.windows)
        print(f"{folder}: {len(windows)} windows of {windows.shape[1]} tokens, {run.dtype}")
        found = {}
        for name, order, shape in shapes(run):
            found[name] = nll(run, order, shape, windows)
            ratio = run.accounting.ratio(shape)
            print(f"  {name:24} ratio {ratio:.4f}  perplexity {math.exp(fmean(found[name])):.2f}")
        if {"uniform", "allocation"} <= found.keys():
            apart = [
                mine - theirs
                for mine, theirs in zip(found["allocation"], found["uniform"], strict=True)
            ]
            stderr = stdev(apart) / math.sqrt(len(apart))
            print(f"  allocation less uniform: {fmean(apart):+.4f} +- {stderr:.4f} nats per token")


def heldout(run: PastRun, num_windows: int) -> torch.Tensor:
    """int64 [windows, tokens] of the held-out part of the run's own source."""
    typed = OmegaConf.merge(OmegaConf.structured(CalibrationConfig), run.config.calibration)
    calibration = OmegaConf.to_object(typed)
    assert isinstance(calibration, CalibrationConfig)
    spec = replace(calibration.spec(), num_heldout_samples=num_windows)
    vocab_size = run.checkpoint.config().vocab_size
    sets = make_calibration(spec, run.checkpoint.tokenizer, vocab_size=vocab_size)
    assert sets.heldout is not None, "the source of this run holds no text out"
    return torch.from_numpy(sets.heldout.input_ids)


def shapes(run: PastRun) -> Iterator[tuple[str, ChannelOrder, ModelShape]]:
    """Name, channel order with what compensates, and shape."""
    path = run.folder / ALLOCATION
    if not path.exists():
        yield "the search's shape", run.order, run.shape
        return
    allocation = Allocation.load(path)
    yield "dense", run.order, run.accounting.dense
    yield "uniform, not compensated", replace(run.order, compensation=None), allocation.start
    yield "uniform", run.order, allocation.start
    yield "allocation", run.order, allocation.shape


def nll(run: PastRun, order: ChannelOrder, shape: ModelShape, windows: torch.Tensor) -> list[float]:
    """Of each window, nats per predicted token."""
    loaded = prepared(LoadedModel.of(run.checkpoint.load(dtype=run.dtype)), order)
    with masked(loaded, shape):
        sums = torch.cat([sequence_nll(loaded.model, part) for part in windows.split(BATCH_SIZE)])
    each: list[float] = (sums / (windows.shape[1] - 1)).tolist()
    return each


if __name__ == "__main__":
    main()
