"""trajectory.jsonl: one line a step, on disk before the next step starts."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pipelines.runs.files import read_trajectory
from pruning import disk
from pruning.calibration.token_sets import SetName
from pruning.costs.accounting import Accounting
from pruning.costs.target import Target
from pruning.errors import InputError
from pruning.scoring.score import perplexity
from pruning.search.stages import token_set_of
from pruning.search.step import Step
from pruning.search.strategy import Search
from pruning.shape import ModelShape, Removal

Deviation = Literal["halved", "other_arithmetic"]
"""How a score came about otherwise than the others: its batch was run in halves, since it did not
fit into memory; it was computed by an evaluator with another arithmetic than the first one's.
"""
DEVIATIONS: Mapping[Deviation, str] = {
    "halved": "scores of halved batches",
    "other_arithmetic": "scores of other devices or versions",
}
"""In words, for people."""


class Journal:
    """The trajectory of one run.

    A line that a crash cut short is dropped when the file is opened again; its scores are in the
    store. Lines are never rewritten.

    Raises:
        InputError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            self.lines = read_trajectory(path, option="output_dir")
            whole, _, torn = path.read_bytes().rpartition(b"\n")
            if torn:
                with path.open("r+b") as file:
                    file.truncate(len(whole) + 1 if whole else 0)

    def append(self, line: dict[str, Any]) -> None:
        """Adds a step, which is on the disk when this returns."""
        is_new = not self.path.exists()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            disk.sync(self.path.parent)
        self.lines.append(line)

    def deviating(self) -> Counter[Deviation]:
        """Scores of all steps that came about otherwise than the others."""
        return sum((Counter(line.get("deviating", {})) for line in self.lines), Counter())

    def replay(self, search: Search) -> None:
        """Feeds the recorded scores to a new search, which must take the same decisions.

        Raises:
            InputError: it does not.
        """
        for line in self.lines:
            recorded: dict[Removal | None, float] = {
                Removal.from_json(candidate): _read_nll(candidate["nll"])
                for candidate in line["candidates"]
            }
            if "base_nll" in line:
                recorded[None] = _read_nll(line["base_nll"])
            if (
                search.done
                or not search.decides(recorded)
                or search.observe(recorded).removal != Removal.from_json(line["removed"])
            ):
                raise InputError(
                    f"output_dir: step {line['step']} of {self.path} does not follow from its "
                    "settings: it was written by another run or edited. "
                    "Use a new output_dir; scores that still apply are in the store"
                )


def set_of(line: Mapping[str, Any]) -> SetName:
    """The calibration set that a step was scored on."""
    found: SetName = line.get("token_set") or token_set_of(line["stage"])
    return found


def step_line(
    step: Step,
    number: int,
    accounting: Accounting,
    *,
    token_set: SetName,
    context_length: int,
    evaluations: int,
    stderrs: Mapping[Removal, float | None],
    seconds: float,
    timestamp: float,
    targets: Sequence[Target] = (),
) -> dict[str, Any]:
    """One line of the journal.

    Only `seconds` and `timestamp` differ between two runs with the same settings.

    Args:
        token_set: that it was scored on; written where the stage's name does not say so.
        evaluations: candidates of all steps so far, this one included.
        stderrs: of each candidate, the standard error of its NLL minus the one at which it would
            have been as good as the one removed; None where it has none.
        timestamp: end of the step, seconds since 1970.
        targets: in other costs than parameters; what goes of each is written.
    """
    return {
        "step": number,
        "stage": step.stage,
        **({} if token_set == token_set_of(step.stage) else {"token_set": token_set}),
        "removed": step.removal.to_json(),
        "nll": step.nll,
        "perplexity": perplexity(step.nll),
        "ratio": step.ratio,
        "num_parameters": accounting.num_parameters(step.shape),
        "flops_per_token": accounting.flops_per_token(step.shape, context_length=context_length),
        **({"saved": saved_by(step.shape, targets)} if targets else {}),
        "margin": step.margin,
        "margin_stderr": None if step.runner_up is None else stderrs[step.runner_up[0]],
        "evaluations": evaluations,
        "shape": step.shape.text,
        "candidates": [
            candidate.to_json()
            | {"nll": _finite(nll), "stderr": stderrs[candidate]}
            | _for_cost(step, candidate)
            for candidate, nll in step.candidates
        ],
        **_left_out(step),
        "seconds": round(seconds, 3),
        "timestamp": round(timestamp, 3),
    }


def saved_by(shape: ModelShape, targets: Sequence[Target]) -> dict[str, float]:
    """The share of the dense model's that a shape saves of each cost that is asked for."""
    return {target.cost.name: target.cost.ratio(shape) for target in targets}


def _for_cost(step: Step, candidate: Removal) -> dict[str, Any]:
    """What decided besides its score, where steps are judged by score per cost."""
    if step.gains is None:
        return {}
    margin = step.margin_of(candidate)
    return {"gain": step.gain_of(candidate), "margin": _finite(margin)}


def _left_out(step: Step) -> dict[str, Any]:
    """What a selection that leaves candidates out knew, and what it left out; of others nothing."""
    found: dict[str, Any] = {}
    if step.base_nll is not None:
        found["base_nll"] = _finite(step.base_nll)
    if step.unscored is not None:
        found["unscored"] = [
            candidate.to_json() | {"change": change} for candidate, change in step.unscored
        ]
    return found


def _finite(nll: float) -> float | None:
    return nll if math.isfinite(nll) else None


def _read_nll(value: float | None) -> float:
    return math.nan if value is None else value
