"""What a long run holds, sampled as it goes, and whether it grows."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

MB = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory in bytes: `rss` is what is resident, `uss` what only this process has, which is freed
    if it ends.
    """

    step: int
    seconds: float
    driver_rss: int
    driver_uss: int
    actors_rss: tuple[int, ...]
    actors_uss: tuple[int, ...]
    store: int
    wal: int
    journal: int
    mlflow: int
    file_descriptors: int
    threads: int
    blocks: int
    """Pieces of memory that Python has given out.

    Counting them takes none, as listing all objects would.
    """
    waiting: int
    """Calls to MLflow that were not made yet."""


@dataclass(frozen=True, slots=True)
class Line:
    """A least-squares line over samples: `slope` per step, `r2` of the fit."""

    slope: float
    r2: float

    @classmethod
    def through(cls, steps: Sequence[int], values: Sequence[float]) -> Line:
        x, y = np.array(steps, dtype=float), np.array(values, dtype=float)
        slope, start = np.polyfit(x, y, 1)
        rest, spread = y - (slope * x + start), y - y.mean()
        return cls(
            float(slope), float(1 - rest @ rest / (spread @ spread)) if spread.any() else 1.0
        )


class Sampler:
    """Takes samples.

    Args:
        store: the SQLite file; its write-ahead log lies beside it.
        journals: the folder below which `trajectory.jsonl` files are.
    """

    def __init__(self, store: Path, journals: Path, mlflow: Path) -> None:
        self.store, self.journals, self.mlflow = store, journals, mlflow
        self.samples: list[Sample] = []
        self._started = time.monotonic()
        self._driver = psutil.Process()

    def take(self, step: int, actors: Sequence[int], waiting: int) -> Sample:
        gc.collect()  # what waits for it is not kept, and would count as blocks
        driver = self._driver.memory_full_info()
        theirs = [psutil.Process(pid).memory_full_info() for pid in actors]
        journal = sum(path.stat().st_size for path in self.journals.glob("*/trajectory.jsonl"))
        sample = Sample(
            step,
            time.monotonic() - self._started,
            driver.rss,
            driver.uss,
            tuple(info.rss for info in theirs),
            tuple(info.uss for info in theirs),
            _size(self.store),
            _size(self.store.with_name(self.store.name + "-wal")),
            journal,
            _size(self.mlflow),
            self._driver.num_fds(),
            self._driver.num_threads(),
            sys.getallocatedblocks(),
            waiting,
        )
        self.samples.append(sample)
        return sample

    def line(self, name: str, *, part: int | None = None) -> Line:
        """Through one field of the samples after the first quarter, which warms up.

        Args:
            part: which of a field of several.
        """
        kept = [sample for sample in self.samples if sample.step >= self.samples[-1].step / 4]
        values = [
            getattr(sample, name) if part is None else getattr(sample, name)[part]
            for sample in kept
        ]
        return Line.through([sample.step for sample in kept], values)

    def table(self) -> str:
        """All samples, sizes in MB."""
        columns: dict[str, Callable[[Sample], str]] = {
            "step": lambda one: str(one.step),
            "s": lambda one: f"{one.seconds:.0f}",
            "driver rss": lambda one: _megabytes(one.driver_rss),
            "uss": lambda one: _megabytes(one.driver_uss),
            "actors rss": lambda one: _megabytes(*one.actors_rss),
            "actors uss": lambda one: _megabytes(*one.actors_uss),
            "store": lambda one: _megabytes(one.store, digits=2),
            "wal": lambda one: _megabytes(one.wal, digits=2),
            "journal": lambda one: _megabytes(one.journal, digits=2),
            "mlflow": lambda one: _megabytes(one.mlflow, digits=2),
            "fds": lambda one: str(one.file_descriptors),
            "threads": lambda one: str(one.threads),
            "blocks": lambda one: f"{one.blocks:,}",
            "waiting": lambda one: str(one.waiting),
        }
        rows = [list(columns), *([cell(one) for cell in columns.values()] for one in self.samples)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        )


def _megabytes(*sizes: int, digits: int = 1) -> str:
    return " ".join(f"{size / MB:.{digits}f}" for size in sizes)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
