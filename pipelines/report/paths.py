"""What a report says of the paths that searches took: their trajectories, what remained after each
step, and the blocks that all of them removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipelines.report.analysis import (
    STAGES,
    BlockVotes,
    Overlap,
    block_votes,
    overlaps,
    removed_blocks,
)
from pipelines.report.cells import NONE, Runs, block, label, number, plain, removal, tie
from pipelines.report.data import ReportRun
from pipelines.report.page import Cell, Chart, Folded, Heading, Part, Section, Table, Text
from pipelines.report.search_charts import overlap_matrix, remaining_structure, trajectories, votes
from pipelines.runs.candidates import scored_in_words

_SET_STAGES = {"block": "blocks", "width": "MLP channels and attention heads"}
"""What is removed by the steps that are scored on each set, but for allocations, whose whole path
is scored on the block set.
"""


def paths(runs: Runs) -> Section:
    """Trajectories overlaid."""
    sets = {step.set_name for run in runs for step in run.steps}
    two = "Blocks are scored on one text and widths on another, so these are two charts. "
    parts: list[Part] = [
        Text(
            f"Perplexity on the calibration text after each step. {two * (len(sets) > 1)}The large "
            "open marker at 0 is the dense model."
        )
    ]
    rows: list[tuple[Cell, ...]] = []
    for set_name, what in _SET_STAGES.items():
        shown = [run for run in runs if any(step.set_name == set_name for step in run.steps)]
        if shown:
            parts.append(_trajectories(set_name, what, shown, runs))
            rows += [_path(set_name, what, run, runs) for run in shown]
    columns = (
        "run",
        "removed",
        "steps",
        "ratio after the first and last",
        "perplexity, dense",
        "after the last",
        "change",
        "text",
    )
    return Section(
        "trajectories", "Trajectories", (*parts, Table(columns, "llrrrrrl", tuple(rows)))
    )


def _trajectories(set_name: str, what: str, shown: Runs, runs: Runs) -> Chart:
    texts = {run.identity.get(f"calibration.{set_name}") for run in shown}
    said = (
        "All were scored on the same text."
        if len(texts) == 1
        else f"{len(texts)} different texts: compare the courses of the curves, not their heights."
    )
    alone = not any(step.set_name == "width" for run in runs for step in run.steps)
    figure = plain(trajectories(runs, set_name))
    allocated = any(run.allocation for run in shown)
    title = f"Steps scored on the {set_name} text" if allocated else f"Steps that removed {what}"
    return Chart(f"trajectory-{set_name}", title, said, figure, 420, wide=alone)


def _path(set_name: str, what: str, run: ReportRun, runs: Runs) -> tuple[Cell, ...]:
    steps = [step for step in run.steps if step.set_name == set_name]
    start, end = run.dense.get(set_name), steps[-1].perplexity
    return (
        label(run, runs),
        "all" if run.allocation else what,
        str(len(steps)),
        f"{steps[0].ratio:.2%} to {steps[-1].ratio:.2%}",
        number(start),
        number(end),
        f"x {end / start:.3f}" if start and end else NONE,
        run.identity.get(f"calibration.{set_name}", "")[:8],
    )


def stability(runs: Runs) -> Section | None:
    """Which blocks all runs of a model by one method agree on."""
    parts: list[Part] = []
    for index, group in enumerate(_groups(runs)):
        found = block_votes(group)
        if len(group) > 1 and found:
            method = group[0].method.replace("_", " ")
            parts.append(Heading(f"{group[0].model_name}, {method}"))
            parts += [*_votes(index, group, found), *_overlaps(index, group, runs)]
            early = [run.key for run in group if not run.ended and run.steps[-1].stage == "block"]
            if early:
                parts.append(Text(f"{', '.join(early)} did not reach the end of the block stage."))
    intro = Text(
        "Runs of the same model by the same method with other calibration texts, seeds or "
        "settings: a block that all of them remove does not hang on any one of those. What "
        "runs at random have in common is chance."
    )
    return Section("stability", "Stability", (intro, *parts)) if parts else None


def _votes(index: int, group: Runs, found: Sequence[BlockVotes]) -> tuple[Part, ...]:
    """How many runs removed each block, and when."""
    agreed = [vote for vote in found if len(vote.steps) == len(group)]
    said = (
        f"{len(agreed)} of {len(found)} blocks that any run removed were removed by all "
        f"{len(group)} runs ({', '.join(run.key for run in group)})."
    )
    title = "How many runs removed each block"
    figure = votes(found, len(group[0].dense_shape.layers), len(group))
    rows = [
        (
            block(vote.block),
            f"{len(vote.steps)} of {len(group)}",
            *(str(vote.steps.get(run.key, NONE)) for run in group),
        )
        for vote in found
    ]
    table = Table(
        ("block", "removed by", *(f"step in {run.key}" for run in group)),
        "lr" + "r" * len(group),
        tuple(rows),
    )
    folded = f"All {len(rows)} blocks, with the step at which each run removed them"
    return (
        Chart(f"votes-{index}", title, said, plain(figure), 320),
        table if len(rows) <= 12 else Folded(folded, (table,)),
    )


def _overlaps(index: int, group: Runs, runs: Runs) -> list[Part]:
    """How much every two runs agree."""
    agreement, parts = overlaps(group), list[Part]()
    if len(group) > 2:
        text = (
            "Removed by both / removed by either, of the blocks removed whole: 1 is the same set."
        )
        title = "Overlap of the removed blocks (Jaccard)"
        figure, height = overlap_matrix(agreement, group), min(620, 150 + 42 * len(group))
        parts.append(Chart(f"overlap-{index}", title, text, plain(figure), height))
    columns = (
        "runs",
        "",
        "overlap at the end of the block stage",
        "first blocks of each",
        "overlap of those",
    )
    by_key = {run.key: run for run in group}
    rows = tuple(_overlap(each, by_key, runs) for each in agreement)
    return [*parts, Table(columns, "llrrr", rows)]


def _overlap(each: Overlap, by_key: dict[str, ReportRun], runs: Runs) -> tuple[Cell, ...]:
    return (
        label(by_key[each.first], runs),
        label(by_key[each.second], runs),
        number(each.at_end, 2),
        str(each.num_blocks),
        number(each.at_equal, 2),
    )


def remaining(runs: Runs) -> Section:
    """The structure that remains after each step, and every step as a table."""
    parts: list[Part] = [
        Text(
            "Black: the block is gone. Almost white: nothing is missing. The dotted line is "
            "where a stage ends."
        )
    ]
    for run in runs:
        removed = Counter(step.stage for step in run.steps)
        counts = ", ".join(
            f"{removed[stage]} of {what}" for stage, what in STAGES.items() if removed[stage]
        )
        gone = ", ".join(map(block, removed_blocks(run))) or "none"
        text, height = (
            f"Steps: {counts}. Blocks removed whole, in order: {gone}.",
            130 + 16 * min(max(14, len(run.dense_shape.layers)), 50),
        )
        parts += [
            Heading(run.name, label(run, runs)),
            Chart(
                f"left-{run.key}",
                f"{run.key}: what remains of each layer",
                text,
                plain(remaining_structure(run)),
                height,
            ),
            Folded(f"All {len(run.steps)} steps of {run.key}", (_steps(run),)),
        ]
    return Section("left", "Remaining structure", tuple(parts))


def _steps(run: ReportRun) -> Table:
    rows = [
        (
            str(step.number),
            STAGES.get(step.stage, step.stage),
            removal(step.removal),
            f"{step.ratio:.2%}",
            number(step.perplexity, 3),
            scored_in_words(
                len(step.scores), None if step.unscored is None else len(step.unscored)
            ),
            number(step.margin, 5),
            number(step.margin_stderr, 5),
            number(step.num_stderrs, 1),
            str(step.num_within) if step.distances else NONE,
            tie(step.num_stderrs),
        )
        for step in run.steps
    ]
    columns = (
        "step",
        "stage",
        "removed",
        "ratio",
        "perplexity",
        "candidates scored",
        "margin (nats per token)",
        "standard error",
        "closest (standard errors)",
        "near-ties",
        "",
    )
    return Table(columns, "rllrrrrrrrl", tuple(rows))


def _groups(runs: Runs) -> list[list[ReportRun]]:
    """Runs of the same model by the same method together."""
    found: dict[tuple[str, str], list[ReportRun]] = {}
    for run in runs:
        found.setdefault((run.fingerprint, run.method), []).append(run)
    return list(found.values())
