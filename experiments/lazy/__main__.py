"""What lazy selection leaves out and what that costs: `python -m experiments.lazy EXACT LAZY [LAZY
...] --windows 64`, output folders of searches with the same model, text and target.

Of each: candidates scored, FLOPs of all steps against those of the first run, steps in common with
its path, and NLL on the held-out part of the calibration text with the paired standard error of the
difference from the first run's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import takewhile
from statistics import fmean
from typing import Any

from experiments.heldout.judging import arguments, difference, heldout, nll
from pipelines.plan.estimate import trajectory_flops
from pipelines.runs.candidates import search_in_words
from pipelines.runs.saved_run import PastRun, read_run
from pruning.errors import InputError


def main() -> int:
    """Prints a line for each run. Returns the exit status: 2 when the input is wrong."""
    given = arguments(argparse.ArgumentParser(description=__doc__))
    try:
        runs = [read_run(folder) for folder in given.runs]
        require_alike(runs)
        compare(runs, given.windows)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def require_alike(runs: Sequence[PastRun]) -> None:
    """Whether they compare.

    Raises:
        InputError: they have not all ended, or differ in more than their selection.
    """
    for run in runs:
        if run.summary is None:
            raise InputError(f"{run.folder}: the search has not ended")
        if decided_by(run) != decided_by(runs[0]):
            raise InputError(f"{run.folder}: other settings, model or text than {runs[0].folder}")


def decided_by(run: PastRun) -> dict[str, Any]:
    """Its identity but for the selection."""
    return {
        name: value
        for name, value in run.record["identity"].items()
        if not name.startswith(("search.selection", "search.lazy."))
    }


def compare(runs: Sequence[PastRun], num_windows: int) -> None:
    """Prints the table; the first run is what the others are compared with."""
    windows = next(iter(heldout(runs[0], (), num_windows).values()))
    print(f"{runs[0].model_name}, {len(windows)} held-out windows of {windows.shape[1]} tokens")
    of_first = nll(runs[0], runs[0].order, runs[0].shape, windows)
    work = step_flops(runs[0])
    for run in runs:
        assert run.summary is not None
        same_shape = run.shape == runs[0].shape
        found = of_first if same_shape else nll(run, run.order, run.shape, windows)
        mean, stderr = difference(found, of_first)
        print(
            f"{run.folder}: {search_in_words(run.summary['evaluations'])} candidates, FLOPs "
            f"{times_less(work, step_flops(run))}, {in_common(run.lines, runs[0].lines)} of "
            f"{len(run.lines)} steps in common, held-out NLL {fmean(found):.4f} "
            f"({mean:+.4f} +- {stderr:.4f})",
            flush=True,
        )


def step_flops(run: PastRun) -> float | None:
    """Of all steps, as `multipruner plan` counts them; None: not known."""
    assert run.summary is not None
    return trajectory_flops(run.accounting, run.lines, run.summary["calibration"])


def times_less(first: float | None, other: float | None) -> str:
    """How much less that is, in words."""
    return "not known" if first is None or other is None else f"{first / other:.2f} times fewer"


def in_common(mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> int:
    """Steps from the first one on that removed the same."""
    pairs = zip(mine, theirs, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0]["removed"] == pair[1]["removed"], pairs))


if __name__ == "__main__":
    sys.exit(main())
