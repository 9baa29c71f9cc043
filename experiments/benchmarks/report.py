"""What a benchmark found: a table, the settings that it was made with, and the bounds that were
missed. As text and as a dated file.
"""

from __future__ import annotations

import platform
import shlex
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

COLUMNS = 100
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True)
class Report:
    """One benchmark's outcome.

    Args:
        name: of the benchmark, as on the command line.
        settings: what the figures depend on.
        notes: how to read them.
        missed: bounds that do not hold, one sentence each.
    """

    name: str
    title: str
    settings: dict[str, str]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    missed: tuple[str, ...] = field(default=())

    def markdown(self) -> str:
        """Title, settings, table, notes and verdict."""
        settings = "\n".join(
            textwrap.fill(f"- {name}: {value}", COLUMNS, subsequent_indent="  ")
            for name, value in self.settings.items()
        )
        closing = "\n".join(
            textwrap.fill(note, COLUMNS)
            for note in [*self.notes, *(f"**Not met:** {bound}" for bound in self.missed)]
        )
        parts = (f"# {self.title}", settings, _table(self.header, self.rows), closing)
        return "\n\n".join(parts).rstrip() + "\n"

    def save(self, arguments: Sequence[str]) -> Path:
        """Writes the report with date, machine, versions and command under `results`."""
        today = date.today().isoformat()
        made = {
            "date": today,
            "command": f"`python -m experiments.benchmarks {shlex.join(arguments)}`",
            "machine": machine(),
            "versions": versions(),
        }
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{today}-{self.name}.md"
        dated = Report(
            self.name,
            self.title,
            made | self.settings,
            self.header,
            self.rows,
            self.notes,
            self.missed,
        )
        path.write_text(dated.markdown(), encoding="utf-8")
        return path


def rounds_table(rounds: Sequence[tuple[float, float]]) -> tuple[tuple[str, ...], ...]:
    """A row for each round of seconds both ways, with how many times faster the second is, and the
    median of that.
    """
    rows = [
        (str(number), f"{first:.1f} s", f"{second:.1f} s", f"{first / second:.3f}")
        for number, (first, second) in enumerate(rounds, start=1)
    ]
    return (*rows, ("median", "", "", f"{median_speedup(rounds):.3f}"))


def median_speedup(rounds: Sequence[tuple[float, float]]) -> float:
    """Of rounds of seconds both ways."""
    return statistics.median(first / second for first, second in rounds)


def machine() -> str:
    """Kind of machine, without its name."""
    cpu = (
        platform.processor()
        or torch.cpu.get_capabilities().get("cpu_name")
        or "CPU of unknown model"
    )
    return (
        f"{cpu} ({platform.machine()}), {torch.cpu.get_capabilities()['num_logical_cores']} "
        f"cores, {platform.system()}"
    )


def versions() -> str:
    """Versions of what decides the figures."""
    return ", ".join(
        [
            f"Python {platform.python_version()}",
            *(f"{name} {version(name)}" for name in ("multipruner", "torch", "transformers")),
        ]
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    if sum(widths) + 3 * len(widths) + 1 > COLUMNS:
        widths = [3] * len(widths)  # as narrow as it goes
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )
