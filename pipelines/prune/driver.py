"""The loop of a search: propose, look up, score, store, observe, record."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.prune.scorer import Scorer
from pipelines.runs.journal import Journal, step_line
from pruning.costs.accounting import Accounting
from pruning.search.strategy import Search

log = logging.getLogger(__name__)


def run_search(
    search: Search,
    scorer: Scorer,
    journal: Journal,
    *,
    accounting: Accounting,
    context_length: int,
    on_step: Callable[[Mapping[str, Any]], None],
) -> None:
    """Goes on with a search from where its journal ends, until its targets are met.

    Each step is in the store, then in the journal, then reported.
    """
    evaluations = sum(len(step.candidates) for step in search.steps)
    while not search.done:
        stage = search.stage
        assert stage is not None
        started = time.monotonic()
        candidates = search.propose()
        scores = scorer.score(stage.token_set, search.shape, candidates)
        step = search.observe({candidate: scores[candidate].nll for candidate in candidates})
        evaluations += len(candidates)
        line = step_line(
            step,
            len(search.steps),
            accounting,
            context_length=context_length,
            evaluations=evaluations,
            stderrs={
                candidate: scores[candidate].stderr_of_difference(scores[step.removal])
                for candidate in candidates
            },
            seconds=time.monotonic() - started,
            timestamp=time.time(),
        )
        journal.append(line)
        if step.excluded:
            log.warning(
                "step %d: NaN or infinite score, out: %s",
                line["step"],
                ", ".join(map(str, step.excluded)),
            )
        on_step(line)
