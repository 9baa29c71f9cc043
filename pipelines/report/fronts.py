"""Results that compare, each set of them with the ones that no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.evaluate.benchmarks import FIVE_TASKS
from pipelines.evaluate.pareto import pareto_front
from pipelines.report.data import Pair, ReportRun
from pruning.scoring.score import ShapeScore

HELDOUT, ACCURACY = "held-out perplexity", "average accuracy"


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """One model: a run's pruned one, or the dense one, which has no run.

    Args:
        size: the ratio, or milliseconds where the front is over time.
        stderr: of the value; of a perplexity, of its difference from the dense model's, paired over
            the sequences of the text. None: not known.
        nll: of each sequence of the text, where that is known.
    """

    run: ReportRun | None
    size: float
    value: float
    stderr: float | None
    nll: ShapeScore | None
    on_front: bool = False


@dataclass(frozen=True, slots=True)
class ParetoGroup:
    """Results that compare: the same model, measured in the same dtype on the same text, or on the
    same documents by the same harness.

    Args:
        metric: what was measured.
        time: of a front over milliseconds, of what; of one over ratios empty.
    """

    metric: str
    lower_is_better: bool
    time: str
    points: tuple[ParetoPoint, ...]

    @property
    def runs(self) -> tuple[ParetoPoint, ...]:
        """Without the dense model."""
        return tuple(point for point in self.points if point.run is not None)

    @property
    def dense(self) -> ParetoPoint | None:
        return next((point for point in self.points if point.run is None), None)


@dataclass(frozen=True, slots=True)
class _Result:
    """What was measured of a run."""

    run: ReportRun
    ratio: float
    pair: Pair
    stderr: Pair
    nll: tuple[ShapeScore, ShapeScore] | None = None


def first_group(groups: Sequence[ParetoGroup]) -> ParetoGroup | None:
    """The one to show first: that of most runs; among equals what was measured of the pruned models
    afterwards comes before what the searches end with.
    """
    return max(
        groups,
        key=lambda group: (
            len(group.runs),
            group.metric == ACCURACY,
            not group.metric.startswith(HELDOUT),
            group.metric == HELDOUT,
        ),
        default=None,
    )


def pareto_groups(runs: Sequence[ReportRun]) -> tuple[ParetoGroup, ...]:
    """Every result of every run, with the ones that it compares to."""
    found: dict[tuple[str, bool, str], list[_Result]] = {}
    sources = {
        text: source for run in runs[::-1] for source, (_, text) in run.heldout_sources.items()
    }
    unknown = Pair(None, None)
    for run in runs:
        texts = {run.heldout_text: run.heldout}
        texts |= {text: pair for pair, text in run.heldout_sources.values()}
        for text, pair in texts.items():
            of_source = f", {sources[text]}" if text in sources else ""
            key = (f"{HELDOUT}{of_source}", True, f"{text} {run.identity.get('model.dtype')}")
            result = _Result(run, run.ratio, pair, unknown, run.heldout_nll.get(text))
            found.setdefault(key, []).append(result)
    for run in runs:
        if run.evaluation is not None:
            for name, (pair, text) in run.evaluation.texts.items():
                same = f"{run.fingerprint} {text} {run.evaluation.conditions['dtype']}"
                found.setdefault((f"perplexity on {name}", True, same), []).append(
                    _Result(run, run.evaluation.ratio, pair, unknown)
                )
    for run in runs:
        if run.evaluation is not None:
            # the average is over the five tasks, whatever else was measured
            others = {f"documents of {each.task}" for each in run.evaluation.tasks} - {
                f"documents of {name}" for name in FIVE_TASKS
            }
            where = {k: v for k, v in run.evaluation.conditions.items() if k not in others}
            key = (ACCURACY, False, f"{run.fingerprint} {sorted(where.items())}")
            measured = run.evaluation
            found.setdefault(key, []).append(
                _Result(run, measured.ratio, measured.average, measured.average_stderr)
            )
    groups = [_group(metric, lower, results) for (metric, lower, _), results in found.items()]
    return tuple(group for group in groups if group is not None)


def _group(metric: str, lower_is_better: bool, results: Sequence[_Result]) -> ParetoGroup | None:
    """Over milliseconds where all runs were timed alike, else over ratios."""
    results = [result for result in results if result.pair.pruned is not None]
    if not results:
        return None
    times = {result.run.milliseconds[0] for result in results if result.run.milliseconds}
    timed = len(times) == 1 and all(result.run.milliseconds for result in results)
    points = [_point(result, timed=timed) for result in results]
    first = next((result for result in results if result.pair.dense is not None), None)
    if first is not None:
        points.insert(0, _dense(first, timed=timed))
    on_front = pareto_front(
        [(-point.size if timed else point.size, point.value) for point in points],
        lower_is_better=lower_is_better,
    )
    return ParetoGroup(
        metric,
        lower_is_better,
        times.pop() if timed else "",
        tuple(replace(point, on_front=on) for point, on in zip(points, on_front, strict=True)),
    )


def _point(result: _Result, *, timed: bool) -> ParetoPoint:
    value, stderr = result.pair.pruned, result.stderr.pruned
    assert value is not None
    if result.nll is not None:
        dense, pruned = result.nll
        of_nll = pruned.stderr_of_difference(dense)
        stderr = None if of_nll is None else value * of_nll
    return ParetoPoint(
        result.run,
        _milliseconds(result, "pruned") if timed else result.ratio,
        value,
        stderr,
        None if result.nll is None else result.nll[1],
    )


def _dense(result: _Result, *, timed: bool) -> ParetoPoint:
    assert result.pair.dense is not None
    return ParetoPoint(
        None,
        _milliseconds(result, "dense") if timed else 0.0,
        result.pair.dense,
        result.stderr.dense,
        None if result.nll is None else result.nll[0],
    )


def _milliseconds(result: _Result, role: str) -> float:
    assert result.run.milliseconds is not None
    found: float = getattr(result.run.milliseconds[1], role)
    return found
