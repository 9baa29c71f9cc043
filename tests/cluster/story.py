"""What happened when, for the person who watches: lines as it goes on, a table at the end."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from workers.pool.faults import FaultKind


@dataclass
class Row:
    """One line of the table. Times in seconds since the fault.

    Args:
        kind: what the pool must report; None if it loses nothing.
    """

    fault: str
    when_s: float
    in_flight: str
    kind: FaultKind | None = None
    lost: str = "0"
    noticed_s: float | None = None
    pause_s: float | None = None
    whole_s: float | None = None
    notes: list[str] = field(default_factory=list)


class Story:
    """Prints what happens, and keeps the table."""

    def __init__(self) -> None:
        self.started = time.time()
        self.rows: list[Row] = []

    @property
    def now(self) -> float:
        return time.time() - self.started

    def tell(self, text: str) -> None:
        write(f"[{self.now:6.1f} s] {text}")

    def table(self) -> str:
        head = (
            "fault",
            "at",
            "in flight",
            "lost",
            "noticed after",
            "longest pause",
            "all back after",
            "",
        )
        lines: list[tuple[str, ...]] = [head]
        for row in self.rows:
            times = [
                f"{seconds:.1f} s" if seconds is not None else "-"
                for seconds in (row.when_s, row.noticed_s, row.pause_s, row.whole_s)
            ]
            lines.append(
                (row.fault, times[0], row.in_flight, row.lost, *times[1:], "; ".join(row.notes))
            )
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


def write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
