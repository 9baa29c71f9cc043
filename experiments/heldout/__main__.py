"""Perplexity of the shapes of a run on text that it has not seen:
`python -m experiments.heldout RUN [RUN ...] --windows 64 --text wikitext2.test.raw`.

The text is the held-out part of the run's own calibration, each source of a mixture apart, and the
files that are given. Of an allocation: dense, the uniform shape that it starts from with and
without compensation, and the allocation, with the paired standard error of its difference from
uniform. Of other searches: what they came to. In the type of the run.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean

from experiments.heldout.judging import arguments, difference, heldout, nll
from pipelines.runs.files import ALLOCATION
from pipelines.runs.saved_run import PastRun, read_run
from pruning.errors import InputError
from pruning.importance.channel_order import ChannelOrder
from pruning.search.allocation_result import Allocation
from pruning.shape import ModelShape


def main() -> int:
    """Prints a table for each run. Returns the exit status: 2 when the input is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", action="append", default=[], metavar="FILE")
    given = arguments(parser)
    try:
        for folder in given.runs:
            judge(read_run(folder), given.text, given.windows)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def judge(run: PastRun, files: Sequence[str], num_windows: int) -> None:
    """Prints the table of a run.

    Raises:
        InputError: see `heldout`.
    """
    texts = heldout(run, files, num_windows)
    sizes = ", ".join(f"{len(windows)} windows of {name}" for name, windows in texts.items())
    length = next(iter(texts.values())).shape[1]
    print(f"{run.folder}: {sizes}, each of {length} tokens, {run.dtype}")
    found = {}
    for name, order, shape in shapes(run):
        found[name] = {text: nll(run, order, shape, each) for text, each in texts.items()}
        perplexities = "".join(
            f"  {text} {math.exp(fmean(each)):.2f}" for text, each in found[name].items()
        )
        ratio = run.accounting.ratio(shape)
        print(f"  {name:24} ratio {ratio:.4f}{perplexities}", flush=True)
    for text in texts if len(found) > 1 else ():
        print_difference(text, found["allocation"][text], found["uniform"][text])


def shapes(run: PastRun) -> Iterator[tuple[str, ChannelOrder, ModelShape]]:
    """Name, channel order with what compensates, and shape."""
    path = run.folder / ALLOCATION
    if not path.exists():
        yield "the search's shape", run.order, run.shape
        return
    allocation = Allocation.load(path)
    yield "dense", run.order, run.accounting.dense
    if run.order.compensation is not None:
        plain = replace(run.order, compensation=None)
        yield "uniform, not compensated", plain, allocation.start
    yield "uniform", run.order, allocation.start
    yield "allocation", run.order, allocation.shape


def print_difference(text: str, mine: Sequence[float], theirs: Sequence[float]) -> None:
    """Of an allocation from its uniform start, over the windows of a text."""
    mean, stderr = difference(mine, theirs)
    print(f"  allocation less uniform, {text}: {mean:+.4f} +- {stderr:.4f} nats per token")


if __name__ == "__main__":
    sys.exit(main())
