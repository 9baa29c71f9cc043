"""The rounds of `search=allocation`: sensitivities from the store, else from the evaluators."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from pipelines.prune.scorer import Scorer
from pipelines.runs.files import ALLOCATION, read_with
from pipelines.runs.folder import RunFolder
from pipelines.runs.journal import DEVIATIONS
from pruning.search.allocation_result import Allocation
from pruning.search.rounds import AllocationSearch

log = logging.getLogger(__name__)


def find_allocation(
    search: AllocationSearch,
    scorer: Scorer,
    folder: RunFolder,
    *,
    on_wave: Callable[[str, int], None],
) -> Allocation:
    """Runs all rounds, on the `block` set; a resumed run reads the outcome from its folder.

    A run that stopped between has its scores in the store, and takes the same decisions again
    where all evaluators compute alike. Those that came about otherwise it may compute anew.

    Args:
        on_wave: told what is measured next, and how many shapes.
    """
    path = folder.path / ALLOCATION
    if path.exists():
        found = read_with(Allocation.load, path, option="output_dir")
        scorer.deviating.update({kind: found.deviating.get(kind, 0) for kind in DEVIATIONS})
        return found
    before = scorer.deviating.copy()
    while (wave := search.propose()) is not None:
        number = len(search.rounds) + 1
        log.info("round %d: %d shapes to measure", number, len(wave.shapes))
        on_wave(f"round {number}", len(wave.shapes))
        search.observe(scorer.score_near("block", wave.base, wave.shapes, "kl"))
        for each in search.rounds[number - 1 :]:
            log.info(
                "round %d: KL from the dense model %.4f, after %.4f (standard error of the "
                "difference %s)",
                number,
                each.base_score,
                each.score,
                "unknown" if each.gain_stderr is None else f"{each.gain_stderr:.4f}",
            )
    deviating = {str(kind): count for kind, count in (scorer.deviating - before).items()}
    allocation = replace(search.result(), deviating=deviating)
    folder.write_with(ALLOCATION, allocation.save)
    return allocation
