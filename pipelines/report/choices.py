"""What a report says of the choices that searches made: where two part and why, and which choices
chance may have decided.
"""

from __future__ import annotations

from collections import Counter

from pipelines.report.analysis import Divergence, Preference, divergences
from pipelines.report.cells import NONE, Runs, label, near_ties, number, plain, removal, tie
from pipelines.report.page import Cell, Chart, Folded, Heading, Part, Section, Table, Text
from pipelines.report.search_charts import fragility, margins
from pipelines.runs.near_ties import NEAR_TIE_STDERRS

_KINDS = {
    "same": "on the same path",
    "prefix": "where one is a prefix of the other",
    "stage": "parted by settings",
    "order": "parted by the order of channels",
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
            ]
            if each.same_text:
                reasons.append(Text("Both scored this step on the same text."))
    intro = Text(
        "For every two runs of the same model: the first step at which they removed different "
        "things, and how much each preferred its own choice there. The "
        "difference is what the other run's choice lost by, nats per token: its NLL minus that of "
        "its own, or, judged by score per cost, minus the one at which it would have been as good, "
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


def _left_out(runs: Runs) -> str:
    """What margins do not see, of searches that left candidates out."""
    lazy = [run for run in runs if any(step.unscored for step in run.steps)]
    if not lazy:
        return ""
    counts = "; ".join(
        f"{run.key}: {sum(bool(step.unscored) for step in run.steps)} of {len(run.steps)} steps "
        "left candidates out"
        for run in lazy
    )
    return (
        f" {counts} (search.selection=lazy), and none of those is counted here: the second best is "
        "that among the scored ones."
    )


def fragile(runs: Runs) -> Section | None:
    """Margins and near-ties; None where no step chose among several candidates."""
    if all(step.margin is None for run in runs for step in run.steps):
        return None
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        known = [step for step in run.steps if step.near_tie is not None]
        weakest = min(known, key=lambda step: step.num_stderrs or 0.0, default=None)
        at = ", ".join(str(step.number) for step in run.near_ties) or ("none" if known else NONE)
        smallest = f"step {weakest.number}: {weakest.num_stderrs:.2f}" if weakest else NONE
        rows.append(
            (
                label(run, runs, name=True),
                near_ties(run),
                str(len(run.steps) - len(known)),
                at,
                smallest,
            )
        )
    columns = ("run", "near-ties", "not known", "at steps", "closest (standard errors)")
    parts: list[Part] = [
        Text(
            "The margin of a step is the NLL of the second best candidate minus that of the one "
            "removed; where steps are judged by score per cost, minus the one at which it would "
            "have been as good. The choice is a near-tie if any candidate, the second best or a "
            f"worse one that is less certain, lost by less than {NEAR_TIE_STDERRS:g} standard "
            "errors over the calibration sequences (paired): another text may well have chosen "
            "otherwise. Not known for steps that had one candidate only, were scored on one "
            "sequence, or were recorded before standard errors were." + _left_out(runs)
        ),
        Table(columns, "lrrtr", tuple(rows)),
    ]
    if any(step.num_stderrs is not None for run in runs for step in run.steps):
        parts.append(
            Chart(
                "fragility",
                "The closest candidate of each step in standard errors",
                "Points in the shaded part are near-ties.",
                plain(fragility(runs)),
            )
        )
    for run in runs:
        if any(step.margin is not None for step in run.steps):
            title = f"{run.key}: margin of each step"
            text = (
                f"Bars: {NEAR_TIE_STDERRS:g} standard errors either way; one that reaches 0 "
                "is a near-tie. So is one that does not, where a worse candidate is less certain. "
                f"Numbers: all steps of {run.key}, below."
            )
            parts.append(
                Chart(
                    f"margin-{run.key}",
                    title,
                    text,
                    plain(margins(run)),
                    320,
                    wide=len(runs) == 1,
                )
            )
    return Section("margins", "Fragile choices", tuple(parts))
