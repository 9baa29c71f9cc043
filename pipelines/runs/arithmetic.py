"""Which arithmetic computed which steps of a run: one, unless others were accepted."""

from __future__ import annotations

import logging
from typing import Any

from pipelines.runs.files import ALLOCATION, RUN
from pipelines.runs.folder import RunFolder
from pruning.errors import InputError
from pruning.scoring.arithmetic import Arithmetic

log = logging.getLogger(__name__)

ARITHMETIC = "arithmetic"
"""In `run.json` and `summary.json`: a list of spans, each with its first step."""


def claim_arithmetic(
    folder: RunFolder, arithmetic: Arithmetic, *, num_steps: int, accept: bool
) -> list[dict[str, Any]]:
    """Records who computes from here on, or finds it recorded.

    Args:
        arithmetic: of the evaluators that are there now.
        num_steps: that the run has taken by now. What was recorded for steps that were not taken
            is dropped; what an allocation was measured with counts before the first one.
        accept: go on if it is another one than before.

    Returns:
        `from_step` and the fields of the arithmetic, for each that took part, in their order. Of
        steps that a version up to 0.1 took it is not known.

    Raises:
        InputError: it is another one, which is not accepted.
    """
    recorded: list[dict[str, Any]] = (folder.read(RUN) or {}).get(ARITHMETIC, [])
    last = max(num_steps, int((folder.path / ALLOCATION).exists()))
    spans = [span for span in recorded if span["from_step"] <= last]
    here = arithmetic.to_json()
    if spans:
        there = spans[-1]
        differing = [
            f"{name}: {there[name] or 'none'} there, {value or 'none'} here"
            for name, value in here.items()
            if there.get(name, value) != value
        ]
        if not differing:
            if spans != recorded:
                folder.remember(**{ARITHMETIC: spans})
            return spans
        if not accept:
            raise InputError(
                f"output_dir: the steps in {folder.path} were computed otherwise than these "
                "evaluators would:\n  "
                + "\n  ".join(differing)
                + "\nGo on where they were computed, give another output_dir, or accept that the "
                "last digits differ from here on with accept_other_arithmetic=true, which leaves "
                "its mark in run.json, trajectory.jsonl and summary.json"
            )
        log.warning(
            "from step %d on, scores are computed otherwise than before: %s",
            num_steps + 1,
            "; ".join(differing),
        )
    elif num_steps:
        log.info("what steps 1 to %d were computed with is not recorded", num_steps)
    spans = [*spans, {"from_step": num_steps + 1} | here]
    folder.remember(**{ARITHMETIC: spans})
    return spans
