"""The table of latencies that targets in time are by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.runs.files import read_with
from pipelines.runs.saved_run import SavedRun
from pruning.costs.latency import PHASES, LatencyTable, warn_of_noise
from pruning.errors import InputError
from pruning.search.prediction import MeasuredRound
from pruning.shape import UNITS, ModelShape, Unit


@dataclass(frozen=True, slots=True)
class Timing:
    """A table of latencies for the model of a run, whichever device it was measured on.

    Args:
        fingerprint: of its file, 32 hexadecimal digits.
    """

    path: Path
    table: LatencyTable
    fingerprint: str

    @classmethod
    def read(cls, file: str, run: SavedRun, rounds: Sequence[MeasuredRound]) -> Timing:
        """Reads it, and checks it against what the run measured.

        Raises:
            InputError: it is missing, damaged, of another model, or lacks sizes.
        """
        path = Path(file).expanduser().absolute()
        if not path.is_file():
            raise InputError(
                f"latency: {path} is no file; give the latency.json of multipruner latency"
            )
        table = read_with(LatencyTable.load, path, option="latency")
        if table.fingerprint != run.fingerprint:
            raise InputError(
                f"latency: {path} is of {table.model} (fingerprint {table.fingerprint}), and the "
                f"run in {run.folder} pruned {run.model_name} ({run.fingerprint}); measure that "
                "with multipruner latency"
            )
        problems = [
            f"latency: {path} has {unit} of {min(sizes)} to {max(sizes)}, and the run in "
            f"{run.folder} measured {', '.join(map(str, missing))}; measure those with it"
            for unit in UNITS
            for sizes in [table.times.of(unit)]
            if (missing := [each for each in _sizes(rounds, unit) if not table.reaches(unit, each)])
        ]
        if problems:
            raise InputError("\n".join(problems))
        warn_of_noise(table)
        return cls(path, table, hashlib.sha256(path.read_bytes()).hexdigest()[:32])

    def to_json(self, shape: ModelShape) -> dict[str, Any]:
        """As `solution.json` has it."""
        table = self.table
        return {
            "table": str(self.path),
            "fingerprint": self.fingerprint,
            "dtype": table.dtype,
            "arithmetic": dict(table.arithmetic),
            "settings": asdict(table.settings),
            "predicted_seconds": {phase: table.seconds(shape, phase) for phase in PHASES},
        }


def _sizes(rounds: Sequence[MeasuredRound], unit: Unit) -> list[int]:
    """All that the shapes of a run have."""
    shapes = {shape for each in rounds for shape in each.measured}
    return sorted({getattr(layer, unit) for shape in shapes for layer in shape.layers})
