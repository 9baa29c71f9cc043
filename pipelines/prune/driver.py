"""The loop of a search: propose, select, look up, score, store, observe, record."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.prune.scorer import Scorer
from pipelines.runs.journal import Journal, step_line
from pruning.calibration.token_sets import SetName
from pruning.costs.accounting import Accounting
from pruning.scoring.score import BatchScore, ShapeScore
from pruning.search.selection import Ask
from pruning.search.strategy import Search
from pruning.shape import Removal

log = logging.getLogger(__name__)


def run_search(
    search: Search,
    scorer: Scorer,
    journal: Journal,
    *,
    accounting: Accounting,
    context_length: int,
    on_step: Callable[[Mapping[str, Any]], None],
    computed_with: Mapping[str, str] | None = None,
) -> None:
    """Goes on with a search from where its journal ends, until its targets are met.

    The disk has the scores of each step, then its line of the journal, then it is reported.

    Args:
        computed_with: what each line says besides of where its scores come from.
    """
    evaluations = sum(len(step.candidates) for step in search.steps)
    while not search.done:
        stage = search.stage
        assert stage is not None
        started, deviating = time.monotonic(), Counter(scorer.deviating)
        scores = _selected(search, scorer, stage.token_set)
        step = search.observe({candidate: score.nll for candidate, score in scores.items()})
        evaluations += len(scores)
        line = step_line(
            step,
            len(search.steps),
            accounting,
            token_set=stage.token_set,
            context_length=context_length,
            evaluations=evaluations,
            stderrs={
                candidate: score.stderr_of_difference(scores[step.removal])
                for candidate, score in scores.items()
            },
            seconds=time.monotonic() - started,
            timestamp=time.time(),
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


def _selected(search: Search, scorer: Scorer, set_name: SetName) -> dict[Removal, ShapeScore]:
    """The candidates of the next step that its selection scored on the whole set."""
    num_batches = scorer.num_batches(set_name)
    selection = search.selection(num_batches)
    scores: dict[Ask, BatchScore] = {}
    while asks := selection.next(scores):
        scores |= scorer.score(set_name, search.shape, asks)
    return {
        candidate: ShapeScore.of(scores[candidate, batch] for batch in range(num_batches))
        for candidate in search.propose()
        if all((candidate, batch) in scores for batch in range(num_batches))
    }
