"""sweep.json and its picture: the report of all points so far, written after each of them, so that
there is one whatever happens next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config.grid import points_of
from pipelines.config.redaction import masked_url
from pipelines.runs.files import SWEEP, SWEEP_PICTURE
from pipelines.runs.folder import RunFolder
from pipelines.runs.pictures import sweep_figure
from pipelines.runs.provenance import git_revision, versions
from pipelines.sweep.outcomes import Outcome, outcome_of, recorded_run_id
from pipelines.sweep.point_jobs import PointJob
from pipelines.sweep.table import selection_metric, sweep_report
from pipelines.tracking.tracker import Tracker
from pruning.canonical_json import dump_json
from pruning.errors import InputError


class SweepFile:
    """What there is of each point, in a file.

    Args:
        jobs: in the order in which they run.
        tracker: of the sweep's own MLflow run.
        max_perplexity_ratio: what the best point may cost.
    """

    def __init__(
        self,
        folder: RunFolder,
        jobs: Sequence[PointJob],
        grid: Mapping[str, Any],
        tracker: Tracker,
        *,
        max_perplexity_ratio: float,
    ) -> None:
        self._folder, self._jobs, self._grid, self._tracker = folder, jobs, grid, tracker
        self._max_perplexity_ratio = max_perplexity_ratio
        self._outcomes: dict[str, Outcome] = {}

    @property
    def num_points(self) -> int:
        """Points that have run, whatever came of them."""
        return len(self._outcomes)

    @property
    def problems(self) -> dict[str, str]:
        """By point, why it is not what was asked for."""
        return {
            name: outcome.problem
            for name, outcome in self._outcomes.items()
            if outcome.problem is not None
        }

    def add(self, each: PointJob, problem: str | None) -> None:
        """Takes what is in the point's folder, and writes everything.

        Args:
            problem: why it is not what was asked for; None if it is, and then a damaged file there
                is one.
        """
        try:
            outcome = outcome_of(each.point, each.job, self._folder.path, problem)
        except InputError as error:
            outcome = outcome_of(each.point, each.job, self._folder.path, str(error))
        self._outcomes[each.point.name] = outcome
        self.write()

    def write(self) -> dict[str, Any]:
        """Writes everything; returns what the file says."""
        # In the order of the grid, whichever ran first.
        places = {point.name: index for index, point in enumerate(points_of(self._grid))}
        points = [
            self._outcomes.get(each.point.name)
            or outcome_of(each.point, each.job, self._folder.path, "not run yet")
            for each in sorted(self._jobs, key=lambda each: places[each.point.name])
        ]
        order = [
            self._outcomes[each.point.name]
            for each in self._jobs
            if each.point.name in self._outcomes
        ]
        report: dict[str, Any] = {
            "grid": dict(self._grid),
            **sweep_report(points, order, selection_metric(points), self._max_perplexity_ratio),
            "tracking": {
                "uri": masked_url(self._tracker.uri),
                "run_id": self._tracker.run_id,
            },
            "versions": versions(),
            "git_revision": git_revision(),
        }
        for row in report["points"]:
            row["mlflow_run_id"] = recorded_run_id(self._folder.path / row["folder"])
        self._folder.write(SWEEP, dump_json(report))
        self._folder.write_with(SWEEP_PICTURE, sweep_figure(report).savefig)
        return report
