"""What a report says, section by section."""

from __future__ import annotations

from pipelines.report.cells import Runs, label, near_ties, number, outcome, relative
from pipelines.report.choices import fragile, parting
from pipelines.report.latencies import latencies
from pipelines.report.page import Part, Section, Table, Text
from pipelines.report.paths import paths, remaining, stability
from pipelines.report.results import benchmarks, cost, front, settings
from pipelines.report.sensitivities import sensitivities


def sections(runs: Runs) -> tuple[Section, ...]:
    """Those that have something to say."""
    made = (
        overview(runs),
        paths(runs),
        parting(runs),
        fragile(runs),
        stability(runs),
        remaining(runs),
        sensitivities(runs),
        latencies(runs),
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
            label(run, runs, name=True),
            run.model_name,
            outcome(run),
            str(len(run.steps)),
            f"{run.ratio:.2%}",
            run.target,
            number(run.heldout.dense),
            number(run.heldout.pruned),
            near_ties(run),
        )
        for run in runs
    ]
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
    parts: list[Part] = [Table(columns, "lllrrrrrr", tuple(rows)), *_sources(runs)]
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


def _sources(runs: Runs) -> list[Part]:
    """Of mixtures, each source apart."""
    rows = [
        (label(run, runs), source, number(pair.dense), number(pair.pruned), relative(pair))
        for run in runs
        for source, (pair, _) in run.heldout_sources.items()
    ]
    if not rows:
        return []
    said = (
        "Held-out perplexity of each text of a mixture: what is better on one and worse on another "
        "is not better."
    )
    columns = ("run", "held-out text", "dense", "pruned", "change")
    return [Text(said), Table(columns, "llrrr", tuple(rows))]
