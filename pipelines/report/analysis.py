"""What several trajectories say together: where two part and why, which blocks all agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from pipelines.report.data import ReportRun, ReportStep
from pipelines.runs.near_ties import NEAR_TIE_STDERRS, num_stderrs
from pruning.scoring.score import perplexity
from pruning.shape import Removal

STAGES = {
    "block": "residual blocks",
    "mlp_channels": "MLP channels",
    "attention_heads": "attention heads",
}

Block = tuple[Literal["attention", "mlp"], int]
"""A residual block: its kind and its layer."""


@dataclass(frozen=True, slots=True)
class Preference:
    """How much better a run found its own choice than the one that the other run made.

    Args:
        difference: NLL of the other's choice minus that of its own, nats per token; None where it
            had no score for the other's.
        stderr: of the difference, paired over the calibration sequences; None where it was not
            recorded.
        perplexity_change: what the other's choice would have added to the perplexity.
    """

    difference: float | None
    stderr: float | None
    perplexity_change: float | None

    @property
    def num_stderrs(self) -> float | None:
        return num_stderrs(self.difference, self.stderr)


@dataclass(frozen=True, slots=True, eq=False)
class Divergence:
    """Where two searches of the same model part.

    Args:
        kind: `same` path to the end; `prefix`: one ends where the other goes on; `stage`: one
            removes other things than the other at this point, because a stage had met its target;
            `order`: both remove widths, and the same width stands for different channels; `choice`:
            the same stage chose otherwise.
        num_common: steps that are the same.
        steps: the first that differ, None for a path that has ended.
        preferences: of `choice`, what each run thought of it.
    """

    first: ReportRun
    second: ReportRun
    kind: Literal["same", "prefix", "stage", "order", "judge", "choice"]
    num_common: int
    steps: tuple[ReportStep | None, ReportStep | None]
    preferences: tuple[Preference, Preference] | None

    @property
    def verdict(self) -> str:
        """In plain words."""
        first, second = self.first, self.second
        if self.kind == "same":
            return "both followed the same path to the end"
        if self.kind == "prefix":
            short, long = (first, second) if self.steps[0] is None else (second, first)
            why = (
                f"ends there, at {short.ratio:.2%}"
                if short.ended
                else f"has not ended, and is at {short.ratio:.2%}"
            )
            return f"one path: {short.key} is a prefix of {long.key}; {short.key} {why}"
        mine, theirs = self.steps
        assert mine is not None
        assert theirs is not None
        if self.kind == "stage":
            return (
                f"settings: {first.key} is removing {STAGES[mine.stage]} there, {second.key} "
                f"{STAGES[theirs.stage]}, so the choices are of different kinds"
            )
        if self.kind == "order":
            return (
                f"settings: {first.key} and {second.key} sorted their channels differently, so "
                "that from there on the same width stands for different channels"
            )
        if self.kind == "judge":
            return (
                f"settings: {first.key} and {second.key} compare candidates by different things "
                "(search.judged_by, and what a cost is)"
            )
        assert self.preferences is not None
        return _verdict(first.key, second.key, *self.preferences)

    @property
    def same_text(self) -> bool | None:
        """Whether both scored that step on the same calibration text."""
        step = self.steps[0] or self.steps[1]
        if step is None:
            return None
        name = f"calibration.{step.set_name}"
        return self.first.identity.get(name) == self.second.identity.get(name)


def divergences(runs: Sequence[ReportRun]) -> tuple[Divergence, ...]:
    """Of every two runs that prune the same model."""
    return tuple(
        divergence(first, second)
        for first, second in combinations(runs, 2)
        if first.fingerprint == second.fingerprint
    )


def divergence(first: ReportRun, second: ReportRun) -> Divergence:
    """Where two runs of the same model part."""
    same_order = first.channel_order == second.channel_order
    pairs = zip(first.steps, second.steps, strict=False)
    common = next(
        (
            index
            for index, (mine, theirs) in enumerate(pairs)
            if mine.removal != theirs.removal or not (mine.removes_block or same_order)
        ),
        min(len(first.steps), len(second.steps)),
    )
    mine, theirs = (
        run.steps[common] if common < len(run.steps) else None for run in (first, second)
    )
    if mine is None or theirs is None:
        return Divergence(
            first, second, "same" if mine is theirs else "prefix", common, (mine, theirs), None
        )
    if mine.stage != theirs.stage:
        return Divergence(first, second, "stage", common, (mine, theirs), None)
    if not (mine.removes_block or same_order):
        return Divergence(first, second, "order", common, (mine, theirs), None)
    if _judged_by(first) != _judged_by(second):
        return Divergence(first, second, "judge", common, (mine, theirs), None)
    return Divergence(
        first,
        second,
        "choice",
        common,
        (mine, theirs),
        (_preference(mine, theirs.removal), _preference(theirs, mine.removal)),
    )


def _judged_by(run: ReportRun) -> dict[str, str]:
    """What its steps compare candidates by: scores, or scores and the costs that are to go."""
    judge = run.settings.get("search.judged_by", "score")
    if judge == "score":
        return {}
    targets = {name: run.settings[name] for name in run.settings if "search.target" in name}
    return targets | {"search.judged_by": judge}


def _preference(step: ReportStep, other: Removal) -> Preference:
    own, score = step.scores[step.removal].nll, step.scores.get(other)
    if score is None or score.nll is None or score.margin is None or own is None:
        return Preference(None, None, None)
    theirs, mine = perplexity(score.nll), perplexity(own)
    change = None if theirs is None or mine is None else theirs - mine
    return Preference(score.margin, score.stderr, change)


def _verdict(first: str, second: str, mine: Preference, theirs: Preference) -> str:
    if mine.difference is None and theirs.difference is None:
        return (
            "not comparable: what one chose was not a candidate of the other, was left out, or had "
            "no finite score there"
        )
    if mine.difference is None or theirs.difference is None:
        key, known = (second, theirs) if mine.difference is None else (first, mine)
        return f"only {key} scored both choices: the difference is {_size(key, known)}"
    if mine.difference == 0 or theirs.difference == 0:
        which = first if mine.difference == 0 else second
        return f"tie: in {which} both are as good, and the first in order goes"
    sizes = f"{_size(first, mine)}, {_size(second, theirs)}"
    if mine.num_stderrs is None or theirs.num_stderrs is None:
        return f"how much is chance is not known: the difference is {sizes}"
    near = [size < NEAR_TIE_STDERRS for size in (mine.num_stderrs, theirs.num_stderrs)]
    if all(near):
        return f"near-tie: the difference is {sizes}"
    if any(near):
        return f"near-tie in {first if near[0] else second} only: the difference is {sizes}"
    return f"clear: each prefers its own choice, the difference is {sizes}"


def _size(key: str, preference: Preference) -> str:
    if preference.num_stderrs is None:
        return f"{preference.difference:.4f} nats per token (standard error not known) in {key}"
    return f"{preference.num_stderrs:.1f} standard errors in {key}"


@dataclass(frozen=True, slots=True)
class BlockVotes:
    """One block, and the step at which each run removed it, by the run's key."""

    block: Block
    steps: dict[str, int]


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much two runs agree on which blocks to remove: sizes of intersection / union of their
    sets.

    Args:
        at_end: after the block stage of each; None if neither removed a block.
        num_blocks: that both removed at least.
        at_equal: of the first `num_blocks` of each: sets of equal size, which targets do not pull
            apart.
    """

    first: str
    second: str
    at_end: float | None
    num_blocks: int
    at_equal: float | None


def removed_blocks(run: ReportRun) -> dict[Block, int]:
    """The blocks that a run removed whole, in order, and at which step."""
    return {
        (step.removal.kind, step.removal.layer): step.number
        for step in run.steps
        if step.removal.kind in ("attention", "mlp")
    }


def block_votes(runs: Sequence[ReportRun]) -> tuple[BlockVotes, ...]:
    """Every block that some run removed: first those that most removed, of those the ones that went
    early.
    """
    removed = {run.key: removed_blocks(run) for run in runs}
    blocks = {block for steps in removed.values() for block in steps}
    votes = [
        BlockVotes(block, {key: steps[block] for key, steps in removed.items() if block in steps})
        for block in blocks
    ]
    return tuple(
        sorted(
            votes,
            key=lambda vote: (
                -len(vote.steps),
                sum(vote.steps.values()) / len(vote.steps),
                vote.block,
            ),
        )
    )


def overlaps(runs: Sequence[ReportRun]) -> tuple[Overlap, ...]:
    """Of every two runs."""
    found = []
    for first, second in combinations(runs, 2):
        mine, theirs = list(removed_blocks(first)), list(removed_blocks(second))
        count = min(len(mine), len(theirs))
        found.append(
            Overlap(
                first.key,
                second.key,
                jaccard(set(mine), set(theirs)),
                count,
                jaccard(set(mine[:count]), set(theirs[:count])),
            )
        )
    return tuple(found)


def jaccard(first: set[Block], second: set[Block]) -> float | None:
    """Size of the intersection / size of the union; None where both are empty."""
    return len(first & second) / len(first | second) if first | second else None
