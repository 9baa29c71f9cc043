"""Who follows a search: MLflow, the person at the terminal, and the status file.

The journal is none of them: `run_search` writes each step there before it tells anyone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from pipelines.cli.commands import resuming
from pipelines.cli.console import WorkProgress, duration
from pipelines.cli.repeating import repeating
from pipelines.config.search import SearchConfig
from pipelines.config.target import in_words, targets_json
from pipelines.prune.job import PruneJob
from pipelines.runs.files import TRAJECTORY_PICTURE
from pipelines.runs.folder import RunFolder
from pipelines.runs.journal import set_of
from pipelines.runs.provenance import git_revision, versions
from pipelines.runs.resume import saved_form
from pipelines.status.status_file import Heartbeat
from pipelines.tracking.description import search_description, started_description
from pipelines.tracking.logged_model import MAX_TAG, PrunedModel
from pipelines.tracking.metrics import (
    dense_metrics,
    layer_metrics,
    metrics_of_set,
    result_metrics,
    search_params,
    search_tags,
    step_metrics,
    time_metrics,
)
from pipelines.tracking.token_dataset import TokenDataset
from pipelines.tracking.tracker import Tracker
from pruning.calibration.token_sets import SetName
from pruning.models.display_name import display_name
from pruning.scoring.score import perplexity
from pruning.search.strategy import Search
from pruning.shape import ModelShape
from workers.pool.protocol import Pool

log = logging.getLogger(__name__)

Line = Mapping[str, Any]
"""Of a trajectory."""
Scores = Mapping[str, float]
"""Of one shape: mean NLL on each calibration set, and on each source's part of the held-out one,
nats per token.
"""


class SearchObserver:
    """Told what happens in a search. This one does nothing with it."""

    def waiting(self, pool: Pool) -> None:
        """Evaluators are coming up. Called about every second."""

    def started(self, search: Search, dense: Scores, lines: Sequence[Line]) -> None:
        """The dense model is scored. `lines` are the steps that earlier processes took."""

    def scored(
        self, pool: Pool, evaluations: Mapping[str, int], candidates: float, *, scored: bool
    ) -> None:
        """So many candidates got done, by evaluators if `scored`, else they were in the store.

        Called about every second. `evaluations` counts all so far, see `Scorer.evaluations`.
        """

    def measuring(self, description: str, candidates: int) -> None:
        """So many candidates are scored next, before the first step."""

    def stepped(self, search: Search, line: Line) -> None:
        """A step is in the journal."""

    def measured(self, pool: Pool) -> None:
        """What the search came to is scored."""


class Observers(SearchObserver):
    """Several, told in their order."""

    def __init__(self, *observers: SearchObserver) -> None:
        self._observers = observers

    def waiting(self, pool: Pool) -> None:
        for each in self._observers:
            each.waiting(pool)

    def started(self, search: Search, dense: Scores, lines: Sequence[Line]) -> None:
        for each in self._observers:
            each.started(search, dense, lines)

    def scored(
        self, pool: Pool, evaluations: Mapping[str, int], candidates: float, *, scored: bool
    ) -> None:
        for each in self._observers:
            each.scored(pool, evaluations, candidates, scored=scored)

    def measuring(self, description: str, candidates: int) -> None:
        for each in self._observers:
            each.measuring(description, candidates)

    def stepped(self, search: Search, line: Line) -> None:
        for each in self._observers:
            each.stepped(search, line)

    def measured(self, pool: Pool) -> None:
        for each in self._observers:
            each.measured(pool)


class SearchTracking(SearchObserver):
    """The search's run in MLflow.

    Args:
        record: what `run.json` says of the search.
        parent: the MLflow run of the sweep that it is a point of.
    """

    def __init__(
        self, job: PruneJob, folder: RunFolder, record: Mapping[str, Any], parent: Tracker | None
    ) -> None:
        self.job, self.folder, self.begun = job, folder, float(record["started"])
        self._goes_on = False
        config = job.config
        self.tracker = Tracker(
            uri=config.tracking.uri,
            experiment=config.tracking.experiment,
            run_name=(
                f"{display_name(config.model.path)} {_asked(config.search)} {job.strategy.label}"
            ),
            started=self.begun,
            run_id=record.get("mlflow_run_id"),
            on_run_id=lambda run_id: folder.remember(mlflow_run_id=run_id),
            parent=parent,
            again=resuming("prune", folder.path),
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sends what describes the search; an error in the context makes its MLflow run a failed
        one.
        """
        self.tracker.start(self._params(), self._tags(), self._datasets())
        config, command = self.job.config, self._command()
        self.tracker.describe(
            started_description(
                display_name(config.model.path), f"strategy {self.job.strategy.label}", command
            )
        )
        try:
            yield
        except BaseException as error:
            self.tracker.fail(error, [config.store.url])
            raise

    def started(self, search: Search, dense: Scores, lines: Sequence[Line]) -> None:
        """The dense model is step 0. Past steps are sent again: MLflow stores a point once however
        often it comes.
        """
        self._goes_on = bool(lines)
        accounting = self.job.accounting
        zero = dense_metrics(
            nll=dense["block"],
            perplexity=perplexity(dense["block"]),
            num_parameters=accounting.num_dense_parameters,
            flops_per_token=accounting.flops_per_token(
                accounting.dense, context_length=self.job.config.calibration.sequence_length
            ),
        )
        self.tracker.log_metrics(zero, step=0, timestamp=self.begun)
        for line in lines:
            self.stepped(search, line)

    def stepped(self, search: Search, line: Line) -> None:
        self.tracker.log_metrics(step_metrics(line), step=line["step"], timestamp=line["timestamp"])

    def finish(
        self, summary: Mapping[str, Any], lines: Sequence[Line], artifacts: Sequence[Path]
    ) -> bool:
        """Sends the result; whether the server has everything by now.

        Args:
            lines: of the whole trajectory.
        """
        ended = lines[-1]["timestamp"] if lines else self.begun
        self._finish_model(summary, step=len(lines), timestamp=ended)
        self.tracker.log_metrics(
            time_metrics(lines, None if self._goes_on else summary["seconds"]),
            step=len(lines),
            timestamp=ended,
        )
        shape = ModelShape.parse(summary["shape"])
        for index, metrics in enumerate(layer_metrics(shape, self.job.accounting.dense)):
            self.tracker.log_metrics(metrics, step=index, timestamp=ended)
        pictures = [path.name for path in artifacts if path.name == TRAJECTORY_PICTURE]
        self.tracker.describe(search_description(summary, self._command()), pictures)
        return self.tracker.finish(
            succeeded=summary["status"] == "target reached", artifacts=artifacts
        )

    def _finish_model(self, summary: Mapping[str, Any], *, step: int, timestamp: float) -> None:
        """The model, if there is one, then what was measured of it, and on what."""
        job, reached = self.job, summary["status"] == "target reached"
        if reached:
            params = {"model": summary["model"], "strategy": summary["strategy"]}
            tags = {"multipruner.run": self.folder.path, "multipruner.shape": summary["shape"]}
            self.tracker.log_model(
                PrunedModel(
                    self.tracker.run_name,
                    params | {"ratio": f"{summary['ratio']:.4f}"},
                    {name: str(value)[:MAX_TAG] for name, value in tags.items()},
                    job.config.tracking.register,
                )
            )
        metrics, sets = result_metrics(summary), self._datasets()
        for name, dataset in sets.items():
            of_set = metrics_of_set(metrics, name)
            metrics = {key: value for key, value in metrics.items() if key not in of_set}
            self.tracker.log_metrics(
                of_set,
                step=step,
                timestamp=timestamp,
                of_model=reached,
                dataset=(dataset.name, dataset.digest),
            )
        self.tracker.log_metrics(metrics, step=step, timestamp=timestamp, of_model=reached)

    def _command(self) -> str:
        return repeating("prune", saved_form(self.job.config))

    def _params(self) -> dict[str, Any]:
        options = cast("dict[str, Any]", OmegaConf.to_container(saved_form(self.job.config)))
        return search_params(options, self.job.identity(), str(self.folder.path))

    def _tags(self) -> dict[str, str]:
        sets = self.job.calibration.sets_and_parts()
        return search_tags(
            model=self.job.fingerprint,
            model_type=self.job.accounting.family.model_type,
            calibration={name: tokens.fingerprint for name, tokens in sets.items()},
            versions=versions(),
            revision=git_revision(),
        )

    def _datasets(self) -> dict[str, TokenDataset]:
        calibration = self.job.config.calibration
        source: dict[str, Any] = {
            "source": calibration.source,
            "path": calibration.path,
            "seed": calibration.seed,
        }
        if calibration.sources:
            source["sources"] = [asdict(each) for each in calibration.sources]
        return {
            name: TokenDataset(
                f"{calibration.source}-{name}",
                tokens.fingerprint,
                source,
                tokens.num_sequences,
                tokens.sequence_length,
            )
            for name, tokens in self.job.calibration.sets_and_parts().items()
        }


def _asked(search: SearchConfig) -> str:
    targets = targets_json(search.asked)
    return in_words(None, **targets) if targets else f"{search.target_ratio:.0%}"


class SearchProgress(SearchObserver):
    """The progress bar, and a line in the log for every step."""

    def __init__(self, bar: WorkProgress) -> None:
        self.bar = bar
        self._previous: tuple[SetName, float | None] = ("block", None)
        self._num_ahead = 0.0

    def started(self, search: Search, dense: Scores, lines: Sequence[Line]) -> None:
        self._previous, self._num_ahead = ("block", perplexity(dense["block"])), 0.0
        for line in lines[-1:]:
            self._previous = (set_of(line), line["perplexity"])
        self._expect(search)

    def measuring(self, description: str, candidates: int) -> None:
        self.bar.expect(description, candidates)

    def scored(
        self, pool: Pool, evaluations: Mapping[str, int], candidates: float, *, scored: bool
    ) -> None:
        self.bar.advance(candidates, scored=scored)
        self._num_ahead += candidates

    def stepped(self, search: Search, line: Line) -> None:
        # What is scored of steps to come is not to come any more.
        self._num_ahead = max(0.0, self._num_ahead - len(search.steps[-1].candidates))
        self._expect(search)
        log.info(
            "step %d: cut %s; perplexity %s%s, ratio %.2f %%, %.1f s, %s left",
            line["step"],
            search.steps[-1].removal,
            "not finite" if line["perplexity"] is None else f"{line['perplexity']:.3f}",
            self._change(line),
            100 * line["ratio"],
            line["seconds"],
            duration(self.bar.left_s if search.stage else 0),
        )

    def _change(self, line: Line) -> str:
        """Of perplexity, on the same calibration set, which the stages do not share."""
        current = (set_of(line), line["perplexity"])
        before, self._previous = self._previous, current
        if before[0] != current[0] or before[1] is None or current[1] is None:
            return ""
        return f" ({current[1] - before[1]:+.3f})"

    def _expect(self, search: Search) -> None:
        stage = search.stage
        remaining = max(0.0, search.expected_evaluations() - self._num_ahead)
        self.bar.expect(stage.name if stage else "done", remaining)


class SearchStatus(SearchObserver):
    """The status file of the search.

    Args:
        bar: that knows the rate.
        tracker: that knows whether MLflow is behind.
    """

    def __init__(self, heartbeat: Heartbeat, bar: WorkProgress, tracker: Tracker) -> None:
        self.heartbeat, self.bar, self.tracker = heartbeat, bar, tracker

    def waiting(self, pool: Pool) -> None:
        self.heartbeat.beat(pool)

    def scored(
        self, pool: Pool, evaluations: Mapping[str, int], candidates: float, *, scored: bool
    ) -> None:
        self.heartbeat.beat(
            pool,
            rate=round(self.bar.rate, 3),
            left_s=self.bar.left_s,
            tracking=self.tracker.state(),
            evaluations=evaluations,
        )

    def stepped(self, search: Search, line: Line) -> None:
        self.heartbeat.beat_step(line)

    def measured(self, pool: Pool) -> None:
        self.heartbeat.beat(pool, now=True)
