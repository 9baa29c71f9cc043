"""The table of latencies that targets in time are by."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.runs.files import read_with
from pruning.costs.latency import BLOCKS, PHASES, LatencyTable, warn_of_noise
from pruning.errors import InputError
from pruning.shape import UNITS, ModelShape, Unit

log = logging.getLogger(__name__)

_DEVICE = ("device", "processor", "num_threads", "attention")
"""Of the arithmetic: other ones have another table."""


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
    def read(cls, file: str) -> Timing:
        """Reads it.

        Raises:
            InputError: it is missing or damaged.
        """
        path = Path(file).expanduser().absolute()
        if not path.is_file():
            raise InputError(
                f"latency: {path} is no file; give the latency.json of multipruner latency"
            )
        table = read_with(LatencyTable.load, path, option="latency")
        return cls(path, table, hashlib.sha256(path.read_bytes()).hexdigest()[:32])

    def require_model(self, fingerprint: str, pruned: str) -> None:
        """Checks that it is of that model.

        Args:
            pruned: it in words.

        Raises:
            InputError: it is of another.
        """
        table = self.table
        if table.fingerprint != fingerprint:
            raise InputError(
                f"latency: {self.path} is of {table.model} (fingerprint {table.fingerprint}), and "
                f"{pruned} ({fingerprint}); measure that with multipruner latency"
            )

    def require_blocks(self, dense: ModelShape, whose: str) -> None:
        """Checks that its whole blocks are those of a model, where more is not known of that.

        Args:
            dense: of which all layers are alike.
            whose: blocks those are, in words.

        Raises:
            InputError: they are others.
        """
        problems = [
            f"latency: {self.path} is of {self.table.model}, whose whole {name} has {whole} "
            f"{counted}, and that of {whose} has {size}; give a table of that model"
            for unit, (name, counted) in BLOCKS.items()
            for whole, size in [(max(self.table.times.of(unit)), getattr(dense.layers[0], unit))]
            if whole != size
        ]
        if problems:
            raise InputError("\n".join(problems))

    def require_sizes(self, shapes: Iterable[ModelShape], whose: str) -> None:
        """Checks that it has what shapes have.

        Args:
            whose: has those shapes, in words.

        Raises:
            InputError: it does not reach some of their sizes.
        """
        table, sizes = self.table, _sizes(shapes)
        problems = [
            f"latency: {self.path} has {name}s of {min(known)} to {max(known)} {counted}, and "
            f"{whose} has some of {', '.join(map(str, missing))}; measure a table that goes so "
            "far, with multipruner latency"
            for unit in UNITS
            for known, (name, counted) in [(table.times.of(unit), BLOCKS[unit])]
            if (missing := [each for each in sizes[unit] if not table.reaches(unit, each)])
        ]
        if problems:
            raise InputError("\n".join(problems))
        warn_of_noise(table)
        _warn_of_interpolation(table, sizes)

    def warn_of(self, shape: ModelShape) -> None:
        """Says so where a shape has sizes that are not in the table."""
        _warn_of_interpolation(self.table, _sizes([shape]))

    def differences(self, arithmetic: Mapping[str, Any]) -> list[str]:
        """In what a device is another than that of the table."""
        return device_differences(self.table.arithmetic, arithmetic)

    def to_json(self, shape: ModelShape) -> dict[str, Any]:
        """As `solution.json` and `summary.json` have it."""
        table = self.table
        return {
            "table": str(self.path),
            "fingerprint": self.fingerprint,
            "engine": table.engine,
            "dtype": table.dtype,
            "arithmetic": dict(table.arithmetic),
            "settings": asdict(table.settings),
            "predicted_seconds": {phase: table.seconds(shape, phase) for phase in PHASES},
        }


def _sizes(shapes: Iterable[ModelShape]) -> dict[Unit, list[int]]:
    layers = {layer for shape in shapes for layer in shape.layers}
    return {unit: sorted({getattr(each, unit) for each in layers}) for unit in UNITS}


def device_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In words, what two devices and versions do not share."""
    return [
        f"{name}: {there[name]} there, {here[name]} here"
        for name in _DEVICE
        if name in there and there[name] != here[name]
    ]


def _warn_of_interpolation(table: LatencyTable, sizes: Mapping[Unit, Sequence[int]]) -> None:
    """Says so where sizes of a run are not in the table: those that are slow are not seen."""
    found = {
        unit: [each for each in sizes[unit] if each not in table.times.of(unit)] for unit in UNITS
    }
    if not any(found.values()):
        return
    named = [
        f"{name}s of {', '.join(map(str, found[unit]))} {counted}"
        for unit, (name, counted) in BLOCKS.items()
        if found[unit]
    ]
    widths = [each for each in sizes["mlp_channels"] if each]
    log.warning(
        "latency: not in the table, but taken in proportion, so that slow ones are not seen: %s%s",
        "; ".join(named),
        f"; to measure the widths: multipruner latency widths=[{','.join(map(str, widths))}]"
        if found["mlp_channels"]
        else "",
    )
