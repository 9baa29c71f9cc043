"""Runs the benchmarks: `python -m experiments.benchmarks [NAME ...] [--save]`. Exit status 1 when a
bound does not hold.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch

from experiments.benchmarks import (
    allocation_scaling,
    candidates,
    export_memory,
    importance_orders,
    latency,
    latency_7b,
    masks,
    memory,
    prefix_path,
    prefix_reuse,
    scaling,
    speedup,
    sweep,
)
from experiments.benchmarks.report import Report, machine, versions
from pruning.errors import InputError
from pruning.models.dtypes import DTYPES

BENCHMARKS: dict[str, Callable[[argparse.Namespace], Report]] = {
    "prefix_reuse": lambda options: prefix_reuse.run(
        dtype=options.dtype, num_rounds=options.rounds
    ),
    "prefix_path": lambda options: prefix_path.run(dtype=options.dtype, num_rounds=options.rounds),
    "masks": lambda options: masks.run(dtype=options.dtype, num_rounds=options.rounds),
    "memory": lambda options: memory.run(num_candidates=options.candidates),
    "export_memory": lambda _: export_memory.run(),
    "importance_orders": lambda options: importance_orders.run(
        dtype=options.dtype, num_windows=options.windows
    ),
    "speedup": lambda options: speedup.run(dtype=options.dtype, num_rounds=options.rounds),
    "scaling": lambda options: scaling.run(counts=options.evaluators or tuple(scaling.PACES)),
    "allocation_scaling": lambda options: allocation_scaling.run(
        counts=options.evaluators or allocation_scaling.COUNTS
    ),
    "latency": lambda options: latency.run(dtype=options.dtype, num_rounds=options.rounds),
    "sweep": lambda _: sweep.run(),
    "candidates": lambda options: candidates.run(dtype=options.dtype, num_rounds=options.rounds),
    "latency_7b": lambda options: latency_7b.run(num_rounds=options.rounds),
}
NEED_GPU = {"latency_7b"}


def main() -> int:
    """Prints each report as it comes. Returns the exit status: 2 when the input is wrong."""
    options = _parse()
    print(f"{machine()}; {versions()}\n")
    missed = 0
    for name in options.names:
        started = time.perf_counter()
        try:
            report = BENCHMARKS[name](options)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"{report.markdown()}\n({time.perf_counter() - started:.0f} s)\n", flush=True)
        missed += len(report.missed)
        if options.save:
            print(f"saved as {report.save(sys.argv[1:]).name}\n")
    return int(missed > 0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        type=_name,
        default=[name for name in BENCHMARKS if torch.cuda.is_available() or name not in NEED_GPU],
        help=f"{', '.join(BENCHMARKS)}; all when none is named, {', '.join(NEED_GPU)} on a GPU",
    )
    parser.add_argument(
        "--save", action="store_true", help="write dated files under experiments/benchmarks/results"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of prefix_*, masks, importance_orders, speedup, latency and candidates",
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=3,
        help="of the same but importance_orders, and of latency_7b",
    )
    parser.add_argument(
        "--candidates", type=_positive, default=7, help="that memory scores; 61 are all"
    )
    parser.add_argument(
        "--evaluators",
        type=_positive,
        nargs="+",
        help="numbers of simulated ones in scaling and allocation_scaling",
    )
    parser.add_argument(
        "--windows",
        type=_positive,
        default=8,
        help="of 512 tokens of WikiText-2 in importance_orders",
    )
    options = parser.parse_args()
    if "latency" in options.names and options.rounds < latency.MIN_ROUNDS:
        parser.error(f"--rounds: {options.rounds}; latency takes at least {latency.MIN_ROUNDS}")
    return options


def _name(text: str) -> str:
    if text not in BENCHMARKS:
        raise argparse.ArgumentTypeError(
            f"no benchmark {text!r}; there are {', '.join(BENCHMARKS)}"
        )
    return text


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


if __name__ == "__main__":
    sys.exit(main())
