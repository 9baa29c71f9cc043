"""A sweep, by its folder: its points as a table, and each as a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multipruner.run import Run

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Sweep:
    """A sweep that has ended, or as far as it came. All of it raises InputError where `sweep.json`
    is missing or damaged.

    Args:
        folder: its `output_dir`.
    """

    folder: Path

    def table(self) -> DataFrame:
        """A row a point, by name: what differs between the points, `status`, `target_ratio`,
        `ratio` (removed / all parameters), `steps`, `seconds`, whether it is the `best` by the
        rule of `summary`, and what was measured, such as `heldout_perplexity`.
        """
        import pandas as pd

        fields = ("status", "target_ratio", "ratio", "steps", "seconds", "best")
        return pd.DataFrame(
            [
                {"name": point["name"], **point["settings"]}
                | {name: point[name] for name in fields}
                | point["values"]
                for point in self.summary["points"]
            ]
        ).set_index("name")

    @property
    def runs(self) -> dict[str, Run]:
        """The search of each point that has one, by the point's name."""
        points = self.summary["points"]
        return {
            point["name"]: Run(self.folder / point["folder"])
            for point in points
            if point["ratio"] is not None
        }

    @property
    def summary(self) -> dict[str, Any]:
        """`sweep.json`."""
        from pipelines.runs.files import SWEEP, read_json

        return read_json(self.folder / SWEEP, option="sweep", fields=("points",))
