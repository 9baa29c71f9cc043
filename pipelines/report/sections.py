"""What a report says, section by section."""

from __future__ import annotations

from pipelines.report.cells import Runs, label, near_ties, outcome
from pipelines.report.choices import fragile, parting
from pipelines.report.first_screen import first_screen
from pipelines.report.latencies import latencies
from pipelines.report.page import Part, Section, Table, Text
from pipelines.report.paths import paths, remaining, stability
from pipelines.report.results import benchmarks, cost, fronts, samples, settings
from pipelines.report.sensitivities import sensitivities


def sections(runs: Runs) -> tuple[Section, ...]:
    """The answer, then what lies behind it, as far as there is something to say."""
    made = (
        first_screen(runs),
        overview(runs),
        fronts(runs),
        benchmarks(runs),
        samples(runs),
        paths(runs),
        parting(runs),
        fragile(runs),
        stability(runs),
        remaining(runs),
        sensitivities(runs),
        latencies(runs),
        cost(runs),
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
        "near-ties",
    )
    parts: list[Part] = [Table(columns, "lllrrrr", tuple(rows))]
    if len(models) > 1:
        parts.append(
            Text(
                f"{len(models)} different models: only runs of the same model are compared step "
                "by step."
            )
        )
    return Section("runs", "Runs", tuple(parts))
