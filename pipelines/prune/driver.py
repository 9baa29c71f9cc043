"""The loop of a search: propose, select, look up, score, store, observe, record."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from pipelines.prune.scorer import Scorer
from pipelines.runs.journal import Journal, step_line
from pruning.calibration.token_sets import SetName
from pruning.costs.accounting import Accounting
from pruning.costs.target import Target
from pruning.scoring.score import BatchScore, ShapeScore
from pruning.search.selection import Ask
from pruning.search.step import Step
from pruning.search.strategy import Search
from pruning.shape import ModelShape, Removal

log = logging.getLogger(__name__)

TASKS_AHEAD = 2
"""For each evaluator, where the steps to come are known: enough to keep it busy, and few steps that
wait for one another.
"""


def run_search(
    search: Search,
    scorer: Scorer,
    journal: Journal,
    *,
    accounting: Accounting,
    context_length: int,
    on_step: Callable[[Mapping[str, Any]], None],
    targets: Sequence[Target] = (),
    computed_with: Mapping[str, str] | None = None,
) -> None:
    """Goes on with a search from where its journal ends, until its targets are met.

    The disk has the scores of each step, then its line of the journal, then it is reported.

    Args:
        targets: in other costs than parameters.
        computed_with: what each line says besides of where its scores come from.
    """
    evaluations = sum(len(step.candidates) for step in search.steps)
    num_ahead = 0
    while not search.done:
        stage = search.stage
        assert stage is not None
        if num_ahead == 0:
            started = time.monotonic()
            num_ahead = _score_ahead(search, scorer, stage.token_set)
            ahead_s = (time.monotonic() - started) / num_ahead if num_ahead else 0.0
        started, deviating = time.monotonic(), Counter(scorer.deviating)
        scores = _selected(search, scorer, stage.token_set)
        step = search.observe({candidate: score.nll for candidate, score in scores.items()})
        evaluations += len(step.candidates)
        line = step_line(
            step,
            len(search.steps),
            accounting,
            token_set=stage.token_set,
            context_length=context_length,
            evaluations=evaluations,
            stderrs={
                candidate: scores[candidate].stderr_of_difference(_equal(step, candidate, scores))
                for candidate, _ in step.candidates
            },
            seconds=time.monotonic() - started + ahead_s,
            timestamp=time.time(),
            targets=targets,
        )
        line |= computed_with or {}
        if new := scorer.deviating - deviating:
            line["deviating"] = dict(new)
        scorer.store.sync()
        journal.append(line)
        if step.excluded:
            log.warning(
                "step %d: NaN or infinite score, out: %s",
                line["step"],
                ", ".join(map(str, step.excluded)),
            )
        on_step(line)
        num_ahead = max(0, num_ahead - 1)


def _equal(
    step: Step, candidate: Removal, scores: Mapping[Removal | None, ShapeScore]
) -> ShapeScore:
    """The score at which a candidate would have been as good as the one removed: that one's, where
    scores alone decide.
    """
    share = step.tied_share(candidate)
    best = scores[step.removal]
    return best if share is None else scores[None].towards(best, share)


def _score_ahead(search: Search, scorer: Scorer, set_name: SetName) -> int:
    """Scores the shapes of the next steps together, where they are known. Returns how many."""
    removals = search.foreseen()
    if not removals:
        return 0
    num_steps = TASKS_AHEAD * scorer.pool.num_evaluators // scorer.num_batches(set_name)
    shapes = [*accumulate(removals, ModelShape.without, initial=search.shape)][1:]
    scorer.score_ahead(set_name, shapes[: max(1, num_steps)])
    return min(len(shapes), max(1, num_steps))


def _selected(
    search: Search, scorer: Scorer, set_name: SetName
) -> dict[Removal | None, ShapeScore]:
    """The candidates of the next step that its selection scored on the whole set; None is the
    shape before it, where that was asked for.
    """
    num_batches = scorer.num_batches(set_name)
    selection = search.selection(num_batches)
    scores: dict[Ask, BatchScore] = {}
    while asks := selection.next(scores):
        scores |= scorer.score(set_name, search.shape, asks)
    return {
        candidate: ShapeScore.of(scores[candidate, batch] for batch in range(num_batches))
        for candidate in (None, *search.propose())
        if all((candidate, batch) in scores for batch in range(num_batches))
    }
