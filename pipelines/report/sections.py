"""What a report says, section by section."""

from __future__ import annotations

from collections import Counter

from pipelines.report import charts as plots
from pipelines.report.analysis import (
    STAGES,
    Divergence,
    Preference,
    block_votes,
    divergences,
    overlaps,
    removed_blocks,
)
from pipelines.report.cells import NONE, Runs, block, label, number, outcome, plain, removal, tie
from pipelines.report.data import NEAR_TIE_STDERRS, ReportRun
from pipelines.report.page import Cell, Chart, Folded, Heading, Part, Section, Table, Text
from pipelines.report.results import benchmarks, cost, front, settings

_SET_STAGES = {"block": "blocks", "width": "MLP channels and attention heads"}


def sections(runs: Runs) -> tuple[Section, ...]:
    """Those that have something to say."""
    made = (
        overview(runs),
        paths(runs),
        parting(runs),
        fragile(runs),
        stability(runs),
        left(runs),
        front(runs),
        cost(runs),
        benchmarks(runs),
        settings(runs),
    )
    return tuple(section for section in made if section is not None)


def overview(runs: Runs) -> Section:
    """One row a run."""
    models = list(dict.fromkeys((run.fingerprint, run.model_name) for run in runs))
    rows = [
        (
            label(run, runs, name=True), run.model_name, outcome(run), str(len(run.steps)), f"{run.ratio:.2%}", f"{run.target_ratio:.2%}",
            number(run.heldout.dense), number(run.heldout.pruned), _near_ties(run),
        )
        for run in runs
    ]  # fmt: skip
    columns = (
        "run",
        "model",
        "state",
        "steps",
        "removed",
        "target",
        "held-out perplexity, dense",
        "pruned",
        "near-ties",
    )
    stopped = [run.key for run in runs if not run.ended]
    parts: list[Part] = [Table(columns, "lllrrrrrr", tuple(rows))]
    if stopped:
        parts.append(
            Text(
                f"{', '.join(stopped)} {'has' if len(stopped) == 1 else 'have'} not ended: shown "
                "as far as it came. What is measured at the end is missing."
            )
        )
    if len(models) > 1:
        parts.append(
            Text(
                f"{len(models)} different models: only runs of the same model are compared step "
                "by step."
            )
        )
    return Section("runs", "Runs", tuple(parts))


def _near_ties(run: ReportRun) -> str:
    known = sum(step.near_tie is not None for step in run.steps)
    return f"{len(run.near_ties)} of {known}" if known else NONE


def paths(runs: Runs) -> Section:
    """Trajectories overlaid."""
    parts: list[Part] = [
        Text("Perplexity on the calibration text after each step. Blocks are scored on one text and widths on another, so these are two charts; the large open "
             "marker at 0 is the dense model."),
    ]  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for set_name, what in _SET_STAGES.items():
        shown = [run for run in runs if any(step.set_name == set_name for step in run.steps)]
        if not shown:
            continue
        texts = {run.identity.get(f"calibration.{set_name}") for run in shown}
        said = (
            "All were scored on the same text."
            if len(texts) == 1
            else (
                f"{len(texts)} different texts: compare the courses of the curves, not their "
                "heights."
            )
        )
        alone = len(shown) > 0 and not any(
            step.set_name == "width" for run in runs for step in run.steps
        )
        title = f"Steps that removed {what}"
        parts.append(
            Chart(
                f"trajectory-{set_name}",
                title,
                said,
                plain(plots.trajectories(runs, set_name)),
                420,
                wide=alone,
            )
        )
        for run in shown:
            steps = [step for step in run.steps if step.set_name == set_name]
            start, end = run.dense.get(set_name), steps[-1].perplexity
            change = f"x {end / start:.3f}" if start and end else NONE
            span = f"{steps[0].ratio:.2%} to {steps[-1].ratio:.2%}"
            rows.append(
                (
                    label(run, runs),
                    what,
                    str(len(steps)),
                    span,
                    number(start),
                    number(end),
                    change,
                    run.identity.get(f"calibration.{set_name}", "")[:8],
                )
            )
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


_KINDS = {
    "same": "on the same path",
    "prefix": "where one is a prefix of the other",
    "stage": "parted by settings",
    "choice": "parted by a choice",
}
_MANY_PAIRS = 30


def parting(runs: Runs) -> Section | None:
    """Where two runs part, and why."""
    found = divergences(runs)
    if not found:
        return None
    columns = ("runs", "", "steps in common", "they part at step", "verdict")
    rows = [
        (
            label(each.first, runs),
            label(each.second, runs),
            str(each.num_common),
            _parting_step(each),
            each.verdict,
        )
        for each in found
    ]
    reasons: list[Part] = []
    for each in found:
        if each.kind == "choice":
            reasons += [
                Heading(f"{each.first.key} and {each.second.key}, step {each.num_common + 1}"),
                _choice(each, runs),
                *_notes(each),
            ]
    intro = Text(
        "For every two runs of the same model: the first step at which they removed different "
        "things, and how much each preferred its own choice there. The "
        "difference is the NLL of the other run's choice minus that of its own, nats per token, "
        "with its standard error over the calibration sequences "
        f"(paired). Below {NEAR_TIE_STDERRS:g} standard errors it is a near-tie: chance may have "
        "decided."
    )
    table = Table(columns, "llrrt", tuple(rows))
    kinds: Counter[str] = Counter(each.kind for each in found)
    counts = Text(
        f"Of {len(found)} pairs: "
        f"{', '.join(f'{kinds[kind]} {what}' for kind, what in _KINDS.items() if kinds[kind])}."
    )
    pairs: Part = (
        table if len(found) <= _MANY_PAIRS else Folded(f"All {len(found)} pairs", (table,))
    )
    details: tuple[Part, ...] = (
        tuple(reasons)
        if len(found) <= 6
        else (Folded(f"The {len(reasons)} tables of the choices", tuple(reasons)),)
    )
    return Section(
        "divergence", "Where runs part", (intro, counts, pairs, *(details if reasons else ()))
    )


def _parting_step(each: Divergence) -> str:
    return "never" if each.kind == "same" else str(each.num_common + 1)


def _choice(each: Divergence, runs: Runs) -> Table:
    assert each.preferences is not None
    rows: list[tuple[Cell, ...]] = []
    pairs = (
        (each.first, each.steps[0], each.steps[1], each.preferences[0]),
        (each.second, each.steps[1], each.steps[0], each.preferences[1]),
    )
    for run, own, other, preference in pairs:
        assert own is not None
        assert other is not None
        score = own.scores.get(other.removal)
        of_own = own.scores[own.removal].nll
        rows.append(
            (
                label(run, runs),
                removal(own.removal),
                number(of_own, 4),
                removal(other.removal),
                number(score.nll if score else None, 4),
                *_preference(preference),
                tie(preference.num_stderrs),
            )
        )
    columns = (
        "in run",
        "it removed",
        "NLL",
        "the other removed",
        "NLL here",
        "difference",
        "standard error",
        "in perplexity",
        "",
    )
    return Table(columns, "llrlrrrrl", tuple(rows))


def _preference(preference: Preference) -> tuple[str, str, str]:
    return (
        number(preference.difference, 4),
        number(preference.stderr, 4),
        f"{preference.perplexity_change:+.3f}"
        if preference.perplexity_change is not None
        else NONE,
    )


def _notes(each: Divergence) -> list[Part]:
    notes = [] if not each.same_text else ["Both scored this step on the same text."]
    step = each.steps[0]
    if not each.same_order and step is not None and step.stage == "mlp_channels":
        notes.append(
            "The two sorted their channels differently, so that the same width stands for "
            "different channels."
        )
    return [Text(" ".join(notes))] if notes else []


def fragile(runs: Runs) -> Section:
    """Margins and near-ties."""
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        known = [step for step in run.steps if step.near_tie is not None]
        weakest = min(known, key=lambda step: step.num_stderrs or 0.0, default=None)
        at = ", ".join(str(step.number) for step in run.near_ties) or ("none" if known else NONE)
        smallest = f"step {weakest.number}: {weakest.num_stderrs:.2f}" if weakest else NONE
        rows.append(
            (
                label(run, runs, name=True),
                _near_ties(run),
                str(len(run.steps) - len(known)),
                at,
                smallest,
            )
        )
    columns = ("run", "near-ties", "not known", "at steps", "smallest margin (standard errors)")
    parts: list[Part] = [
        Text(
            "The margin of a step is the NLL of the second best candidate minus that of the one "
            f"removed. Below {NEAR_TIE_STDERRS:g} of its standard "
            "errors over the calibration sequences (paired), the choice is a near-tie: another "
            "text may well have chosen otherwise. Not known for steps "
            "that had one candidate only, were scored on one sequence, or were recorded before "
            "standard errors were."
        ),
        Table(columns, "lrrtr", tuple(rows)),
    ]
    if any(step.num_stderrs is not None for run in runs for step in run.steps):
        parts.append(
            Chart(
                "fragility",
                "Margins in standard errors",
                "Points in the shaded part are near-ties.",
                plain(plots.fragility(runs)),
            )
        )
    for run in runs:
        if any(step.margin is not None for step in run.steps):
            title = f"{run.key}: margin of each step"
            text = (
                f"Bars: {NEAR_TIE_STDERRS:g} standard errors either way; one that reaches 0 "
                f"is a near-tie. Numbers: all steps of {run.key}, below."
            )
            parts.append(
                Chart(
                    f"margin-{run.key}",
                    title,
                    text,
                    plain(plots.margins(run)),
                    320,
                    wide=len(runs) == 1,
                )
            )
    return Section("margins", "Fragile choices", tuple(parts))


def stability(runs: Runs) -> Section | None:
    """Which blocks all runs of a model agree on."""
    parts: list[Part] = []
    for index, group in enumerate(_groups(runs)):
        found = block_votes(group)
        if len(group) < 2 or not found:
            continue
        name, keys = group[0].model_name, ", ".join(run.key for run in group)
        agreed = [vote for vote in found if len(vote.steps) == len(group)]
        said = (
            f"{len(agreed)} of {len(found)} blocks that any run removed were removed by all "
            f"{len(group)} runs ({keys})."
        )
        layers = len(group[0].dense_shape.layers)
        parts.append(
            Chart(
                f"votes-{index}",
                f"{name}: how many runs removed each block",
                said,
                plain(plots.votes(found, layers, len(group))),
                320,
            )
        )
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
        parts.append(
            table
            if len(rows) <= 12
            else Folded(
                f"All {len(rows)} blocks, with the step at which each run removed them", (table,)
            )
        )
        agreement = overlaps(group)
        by_key = {run.key: run for run in group}
        if len(group) > 2:
            text = (
                "Removed by both / removed by either, of the blocks removed whole: 1 is the "
                "same set."
            )
            figure = plots.overlap_matrix(agreement, group)
            parts.append(
                Chart(
                    f"overlap-{index}",
                    f"{name}: overlap of the removed blocks (Jaccard)",
                    text,
                    plain(figure),
                    min(620, 150 + 42 * len(group)),
                )
            )
        pairs: list[tuple[Cell, ...]] = [
            (
                label(by_key[each.first], runs),
                label(by_key[each.second], runs),
                number(each.at_end, 2),
                str(each.num_blocks),
                number(each.at_equal, 2),
            )
            for each in agreement
        ]
        parts.append(
            Table(
                (
                    "runs",
                    "",
                    "overlap at the end of the block stage",
                    "first blocks of each",
                    "overlap of those",
                ),
                "llrrr",
                tuple(pairs),
            )
        )
        early = [run.key for run in group if not run.ended and run.steps[-1].stage == "block"]
        if early:
            parts.append(Text(f"{', '.join(early)} did not reach the end of the block stage."))
    intro = Text(
        "Runs of the same model with other calibration texts, seeds or settings: a block that "
        "all of them remove does not hang on any one of those."
    )
    return Section("stability", "Stability", (intro, *parts)) if parts else None


def left(runs: Runs) -> Section:
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
                f"{run.key}: what is left of each layer",
                text,
                plain(plots.what_is_left(run)),
                height,
            ),
            Folded(f"All {len(run.steps)} steps of {run.key}", (_steps(run),)),
        ]
    return Section("left", "Remaining structure", tuple(parts))


def _steps(run: ReportRun) -> Table:
    rows = [
        (
            str(step.number), STAGES.get(step.stage, step.stage), removal(step.removal), f"{step.ratio:.2%}", number(step.perplexity, 3),
            number(step.margin, 5), number(step.margin_stderr, 5), number(step.num_stderrs, 1), tie(step.num_stderrs),
        )
        for step in run.steps
    ]  # fmt: skip
    columns = (
        "step",
        "stage",
        "removed",
        "ratio",
        "perplexity",
        "margin (nats per token)",
        "standard error",
        "margin / standard error",
        "",
    )
    return Table(columns, "rllrrrrrl", tuple(rows))


def _groups(runs: Runs) -> list[list[ReportRun]]:
    """Runs of the same model together."""
    found: dict[str, list[ReportRun]] = {}
    for run in runs:
        found.setdefault(run.fingerprint, []).append(run)
    return list(found.values())
