"""What a report knows of the searches that it compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runs.near_ties import NEAR_TIE_STDERRS, distances, num_stderrs
from pruning.costs.latency import LatencyTable
from pruning.scoring.score import ShapeScore
from pruning.search.allocation_result import Allocation
from pruning.search.strategies import STRATEGIES
from pruning.shape import ModelShape, Removal

SIZES = ("num_parameters", "flops_per_token", "kv_cache_bytes_per_token")


@dataclass(frozen=True, slots=True)
class Score:
    """Of one candidate: NLL in nats per token, what it lost by, and the standard error of that.
    None: not finite, or not recorded.
    """

    nll: float | None
    margin: float | None
    stderr: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """One number of the dense and of the pruned model."""

    dense: float | None
    pruned: float | None


@dataclass(frozen=True, slots=True, eq=False)
class ReportStep:
    """One line of a trajectory."""

    number: int
    stage: str
    removal: Removal
    shape: ModelShape
    perplexity: float | None
    ratio: float
    margin: float | None
    margin_stderr: float | None
    scores: Mapping[Removal, Score]
    set_name: str
    """The calibration set that it was scored on."""
    unscored: Mapping[Removal, float] | None
    """Candidates that its selection left out, with their last known change in nats per token; None
    of a selection that leaves none out.
    """

    @property
    def removes_block(self) -> bool:
        """Whether it took a whole block; else it narrowed one."""
        return self.removal.kind in ("attention", "mlp")

    @property
    def distances(self) -> tuple[float, ...]:
        """By how many standard errors each other candidate lost, where that is known, ascending;
        nothing is known of those that were not scored.

        The second best need not be the first of them: a worse one may be less certain.
        """
        others = (score for removal, score in self.scores.items() if removal != self.removal)
        return distances((score.margin, score.stderr) for score in others)

    @property
    def num_stderrs(self) -> float | None:
        """Of the candidate that might most easily have been chosen instead; None where there was no
        second candidate, or no standard error was recorded.
        """
        return min(self.distances, default=num_stderrs(self.margin, self.margin_stderr))

    @property
    def num_within(self) -> int:
        """Candidates that might as well have been chosen."""
        return sum(distance < NEAR_TIE_STDERRS for distance in self.distances)

    @property
    def near_tie(self) -> bool | None:
        """Whether there is such a candidate; None where that is not known."""
        return None if self.num_stderrs is None else self.num_stderrs < NEAR_TIE_STDERRS


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task."""

    task: str
    metric: str
    score: Pair
    stderr: Pair


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluation.json` says.

    Args:
        ratio: of the shape that was measured.
        texts: perplexity of each text, and the fingerprint of its tokens.
        conditions: what the scores depend on besides the model; see `results.conditions`.
    """

    ratio: float
    texts: Mapping[str, tuple[Pair, str]]
    tasks: tuple[TaskScore, ...]
    average: Pair
    average_stderr: Pair
    conditions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sample:
    """What the dense and the pruned model made of a prompt."""

    prompt: str
    dense: str
    pruned: str


@dataclass(frozen=True, slots=True, eq=False)
class ReportRun:
    """One search.

    Args:
        key: short name on the page: A, B, ...
        name: that a person recognizes.
        outcome: how it ended, in words.
        target: what it was asked for, in words.
        dense: perplexity of the dense model on each calibration set, as far as it is known.
        heldout_text: what tells held-out texts apart.
        heldout_nll: by held-out text, of each sequence, dense and pruned; without those of folders
            that do not have it.
        heldout_sources: of a mixture, by source: held-out perplexity, and what tells its text from
            others.
        settings: options by name, with what the search resolved them to.
        allocation: of `search=allocation`, what its sizes were chosen from.
        latency: of a target in time, the table that it is by.
        milliseconds: of a target in time, of what they are and how they are known, which compares
            where it is equal, and the time.
        costs: numbers of `summary.json`; empty if the search has not ended.
        samples: text that the dense and the pruned model wrote.
    """

    key: str
    name: str
    folder: Path
    model_name: str
    ended: bool
    outcome: str
    target: str
    identity: Mapping[str, str]
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    steps: tuple[ReportStep, ...]
    dense: Mapping[str, float]
    heldout: Pair
    heldout_text: str
    heldout_nll: Mapping[str, tuple[ShapeScore, ShapeScore]]
    heldout_sources: Mapping[str, tuple[Pair, str]]
    sizes: Mapping[str, Pair]
    costs: Mapping[str, Any]
    evaluation: Evaluation | None
    allocation: Allocation | None
    latency: LatencyTable | None
    milliseconds: tuple[str, Pair] | None
    samples: tuple[Sample, ...]
    tracking_uri: str
    mlflow_run_id: str | None

    @property
    def fingerprint(self) -> str:
        """Of the dense model.

        Runs that share it prune the same model, and can be compared step by step.
        """
        return self.identity["model"]

    @property
    def short_name(self) -> str:
        """For where there is no room for a long one."""
        return self.name if len(self.name) <= 26 else f"{self.name[:12]}…{self.name[-12:]}"

    @property
    def method(self) -> str:
        """`search.strategy`, which folders from before it was an option lack."""
        return self.settings.get("search.strategy", "greedy")

    @property
    def is_control(self) -> bool:
        """Whether it looked at no score of the model, and is there to be beaten."""
        strategy = STRATEGIES.get(self.method)
        return strategy is not None and strategy.is_control

    @property
    def ratio(self) -> float:
        return self.steps[-1].ratio

    @property
    def dense_shape(self) -> ModelShape:
        """Layers of one model are equally wide, and one step leaves all but one as they were."""
        layers = self.steps[0].shape.layers
        return ModelShape.dense(
            len(layers),
            max(layer.kv_heads for layer in layers) or 1,
            max(layer.mlp_channels for layer in layers) or 1,
        )

    @property
    def near_ties(self) -> tuple[ReportStep, ...]:
        return tuple(step for step in self.steps if step.near_tie)

    @property
    def channel_order(self) -> tuple[str, ...]:
        """What decides which channels a width stands for.

        With `activation` the calibration text does, too.
        """
        importance = self.settings.get("search.importance", "")
        return (
            (
                importance,
                self.identity.get("calibration.width", ""),
                self.identity.get("model.dtype", ""),
            )
            if importance == "activation"
            else (importance,)
        )
