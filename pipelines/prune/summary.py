"""What a search came to: summary.json and pictures, and a table for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipelines.cli.console import console, duration
from pipelines.config.redaction import masked_url
from pipelines.config.target import in_words, load_in_words, targets_json
from pipelines.plan.against_actual import plan_vs_actual_row
from pipelines.prune.job import PruneJob
from pipelines.prune.samples import SAMPLE_FIELDS
from pipelines.prune.scorer import Scorer
from pipelines.runs.arithmetic import ARITHMETIC
from pipelines.runs.candidates import search_in_words
from pipelines.runs.files import (
    AUTHORS_CONFIG,
    SHAPE,
    SHAPE_PICTURE,
    SUMMARY,
    TRAJECTORY_PICTURE,
)
from pipelines.runs.folder import RunFolder
from pipelines.runs.journal import DEVIATIONS
from pipelines.runs.near_ties import counted
from pipelines.runs.pictures import shape_figure, trajectory_figure
from pipelines.runs.provenance import git_revision, versions
from pruning.calibration.token_sets import heldout_sources
from pruning.canonical_json import dump_json
from pruning.costs.accounting import NOT_KNOWN, Accounting, shown_count
from pruning.costs.latency import PHASES
from pruning.costs.memory import shown_bytes
from pruning.errors import TargetNotReached
from pruning.export.authors_config import write_authors_config
from pruning.models.display_name import display_name
from pruning.scoring.score import ShapeScore, perplexity
from pruning.search.allocation_path import AllocationPath
from pruning.search.stages import StageName
from pruning.search.strategy import Search
from pruning.shape import ModelShape


def costs(
    accounting: Accounting, shape: ModelShape, *, context_length: int, dtype: str
) -> dict[str, dict[str, int | None]]:
    """Dense against pruned, from the configuration alone; None: not known."""
    bytes_per_value = torch.finfo(getattr(torch, dtype)).bits // 8
    dense = accounting.dense
    return {
        "num_parameters": {
            "dense": accounting.num_dense_parameters,
            "pruned": accounting.num_parameters(shape),
        },
        "num_stored_parameters": {
            "dense": accounting.num_dense_parameters,
            "pruned": accounting.num_stored_parameters(shape),
        },
        "flops_per_token": {
            "dense": accounting.flops_per_token(dense, context_length=context_length),
            "pruned": accounting.flops_per_token(shape, context_length=context_length),
        },
        "kv_cache_bytes_per_token": {
            "dense": accounting.kv_cache_bytes_per_token(dense, bytes_per_value=bytes_per_value),
            "pruned": accounting.kv_cache_bytes_per_token(shape, bytes_per_value=bytes_per_value),
        },
    }


def search_summary(
    job: PruneJob,
    search: Search,
    scorer: Scorer,
    lines: Sequence[Mapping[str, Any]],
    *,
    dense: Mapping[str, ShapeScore],
    pruned: Mapping[str, ShapeScore],
    seconds: float,
    problem: TargetNotReached | None,
    output_dir: str,
    mlflow_run_id: str | None,
) -> dict[str, Any]:
    """What summary.json says of a search that is over.

    Args:
        lines: of the whole trajectory.
        dense, pruned: on each calibration set, and on each source's part of the held-out one.
        seconds: of this process.
        problem: why the target was not met; None if it was.
    """
    config, context_length = job.config, job.config.calibration.sequence_length
    return {
        "status": "target reached" if problem is None else str(problem),
        "model": display_name(config.model.path),
        "strategy": job.strategy.label,
        "target_ratio": config.search.target_ratio,
        "ratio": search.ratio,
        **_targets(job, search.shape),
        "steps": [step.stage for step in search.steps],
        "near_ties": counted(lines),
        "perplexity": {
            name: {"dense": perplexity(dense[name].nll), "pruned": perplexity(pruned[name].nll)}
            for name in sorted(dense)
        },
        "nll_per_sequence": {
            name: {"dense": _per_sequence(dense[name]), "pruned": _per_sequence(pruned[name])}
            for name in sorted(dense)
            if name == "heldout" or name in heldout_sources(dense)
        },
        **costs(job.accounting, search.shape, context_length=context_length, dtype=job.dtype),
        "context_length": context_length,
        "calibration": _calibration(job),
        "dtype": job.dtype,
        "evaluations": {
            "candidates": sum(len(step.candidates) for step in search.steps),
            **_unscored(search),
            **scorer.evaluations,
        },
        **_allocation(search),
        "num_evaluators": scorer.pool.num_evaluators,
        **scorer.pool.faults.counters(),
        "seconds": round(seconds, 1),
        "shape": search.shape.text,
        "output_dir": output_dir,
        "tracking": {"uri": masked_url(config.tracking.uri), "run_id": mlflow_run_id},
        "identity": job.identity(),
        "versions": versions(),
        "git_revision": git_revision(),
    }


def _per_sequence(score: ShapeScore) -> list[float | None]:
    """Nats per token of each sequence, with which standard errors of differences can be had."""
    found = (nll / score.num_tokens for nll in score.nll_per_sequence)
    return [nll if math.isfinite(nll) else None for nll in found]


def _unscored(search: Search) -> dict[str, int]:
    """Candidates that the selections of all steps left out, where the search has such a one."""
    left_out = [step.unscored for step in search.steps if step.unscored is not None]
    return {"unscored": sum(map(len, left_out))} if left_out else {}


def _calibration(job: PruneJob) -> dict[str, Any]:
    """Size and fingerprint of each set."""
    return {
        name: {
            "num_sequences": tokens.num_sequences,
            "sequence_length": tokens.sequence_length,
            "fingerprint": tokens.fingerprint,
        }
        for name, tokens in job.calibration.sets_and_parts().items()
    }


def _targets(job: PruneJob, shape: ModelShape) -> dict[str, Any]:
    """Where more than parameters is asked for, what, and what came of it."""
    targets = targets_json(job.config.search.asked)
    if not targets:
        return {}
    costs = {each.cost.name: each.cost.to_json(shape) for each in job.settings.targets}
    latency = {"latency": job.timing.to_json(shape)} if job.timing else {}
    load = job.config.load
    memory = {"memory": load.to_json(job.accounting, shape)} if load else {}
    return {**targets, "costs": costs, **latency, **memory}


def _allocation(search: Search) -> dict[str, Any]:
    """What was measured before the first step, where a search has that part."""
    if not isinstance(search, AllocationPath):
        return {}
    found = search.allocation
    return {
        "allocation": {
            "evaluations": found.num_shapes,
            "rounds": len(found.rounds),
            "kl": {"uniform": found.start_score, "pruned": found.score},
        }
    }


def write_results(
    folder: RunFolder,
    job: PruneJob,
    search: Search,
    lines: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> None:
    """The shape, in our form and in that of the method's authors, the summary, and the pictures.

    Args:
        lines: of the whole trajectory.
    """
    geometry = job.accounting.geometry
    authors = write_authors_config(
        search.shape,
        geometry.dense,
        [step.removal for step in search.steps],
        channels_per_kv_head=geometry.channels_per_kv_head,
    )
    folder.write(SHAPE, dump_json(search.shape.to_json()))
    folder.write(AUTHORS_CONFIG, dump_json(authors))
    folder.write(SUMMARY, dump_json(summary))
    title = f"{summary['model']}, {summary['ratio']:.1%} removed"
    dense = {name: pair["dense"] for name, pair in summary["perplexity"].items()}
    prices = (
        search.allocation.prices(job.accounting) if isinstance(search, AllocationPath) else None
    )
    trajectory = trajectory_figure(lines, dense, title, prices)
    folder.write_with(TRAJECTORY_PICTURE, trajectory.savefig)
    folder.write_with(SHAPE_PICTURE, shape_figure(search.shape, geometry, lines, title).savefig)


def result_tables(summary: Mapping[str, Any]) -> Group:
    """What a person reads at the end: dense against pruned, in numbers and in text."""
    tables = [table(summary)]
    if summary.get("samples"):
        tables.append(_samples_table(summary["samples"]))
    return Group(*tables)


def _samples_table(samples: Sequence[Mapping[str, str]]) -> Table:
    rows = Table(title="what they write", title_justify="left", show_lines=True)
    for name in SAMPLE_FIELDS:
        rows.add_column("after" if name == "prompt" else name, overflow="fold", ratio=1)
    for sample in samples:
        # as text, for it may hold markup; and what the terminal cannot show would be an error
        cells = [" ".join(sample[name].split()) for name in SAMPLE_FIELDS]
        shown = [each.encode(console.encoding, "replace") for each in cells]
        rows.add_row(*(Text(each.decode(console.encoding)) for each in shown))
    return rows


_TIMES = {
    "latency": "time of a batch, by the table",
    "prefill": "time of its prefill, by the table",
    "decode": "time of its decoding, by the table",
}


def table(summary: Mapping[str, Any]) -> Table:
    """Dense against pruned, as a person reads it."""
    rows = Table(
        title=(
            f"{summary['model']}: {summary['ratio']:.1%} of the parameters removed (asked for "
            f"{in_words(summary['target_ratio'], summary.get('targets'))})"
        ),
        title_justify="left",
    )
    for name, side in (("", "left"), ("dense", "right"), ("pruned", "right"), ("change", "right")):
        rows.add_column(name, justify=side)  # type: ignore[arg-type]
    labels = {
        "heldout": "perplexity, held-out text",
        **{
            name: f"perplexity, held-out {source}"
            for name, source in heldout_sources(summary["perplexity"]).items()
        },
        "block": "perplexity, block calibration",
        "width": "perplexity, width calibration",
    }
    for name, label in labels.items():
        pair = summary["perplexity"].get(name)
        if pair:
            rows.add_row(label, *_cells(pair, lambda value: f"{value:.2f}"))
    rows.add_row("parameters", *_cells(summary["num_parameters"], shown_count))
    rows.add_row(
        f"FLOPs per token at {summary['context_length']} tokens",
        *_cells(summary["flops_per_token"], lambda value: f"{value / 1e6:,.1f} M", NOT_KNOWN),
    )
    rows.add_row(
        f"KV-cache bytes per token ({summary['dtype']})",
        *_cells(summary["kv_cache_bytes_per_token"], lambda value: f"{value:,.0f}", NOT_KNOWN),
    )
    for name, cost in summary.get("costs", {}).items():
        if name in _TIMES and "measured" in summary["latency"]:
            rows.add_row(*_timed(name, summary["latency"]["measured"]))
        if name == "memory":
            rows.add_row(load_in_words(summary["memory"]), *_cells(cost, shown_bytes))
        if name in _TIMES:
            rows.add_row(_TIMES[name], *_cells(cost, lambda value: f"{value / 1e6:,.4g} ms"))
    rows.add_section()
    _add_search(rows, summary)
    return rows


def _timed(name: str, measured: Mapping[str, Any]) -> tuple[str, ...]:
    """What a clock said of it."""
    phases = [measured[phase] for phase in PHASES if name in ("latency", phase)]
    pair = {
        side: 1e3 * sum(each[f"{side}_seconds"] for each in phases) for side in ("dense", "pruned")
    }
    return f"{_TIMES[name].partition(',')[0]}, measured", *_cells(
        pair, lambda value: f"{value:,.4g} ms"
    )


def _add_search(rows: Table, summary: Mapping[str, Any]) -> None:
    """How it was found, and what that took."""
    evaluations, steps = summary["evaluations"], Counter(summary["steps"])
    if "search.strategy" in summary["identity"]:  # not to be taken for the greedy search
        rows.add_row("strategy", "", summary["strategy"].replace("_", " "), "")
    rows.add_row(
        "steps: blocks, channels, heads",
        "",
        f"{steps['block']}, {steps['mlp_channels']}, {steps['attention_heads']}",
        "",
    )
    near_ties = summary["near_ties"]
    if near_ties["known"]:
        rows.add_row(
            "steps that another text may well decide otherwise",
            "",
            f"{near_ties['near']} of {near_ties['known']}",
            "among those scored" if "unscored" in evaluations else "",
        )
    if allocation := summary.get("allocation"):
        rows.add_row(
            "shapes measured, KL uniform to allocated",
            "",
            f"{allocation['evaluations']:,}",
            f"{allocation['kl']['uniform']:.4f} to {allocation['kl']['pruned']:.4f}",
        )
    for name in get_args(StageName):
        words = plan_vs_actual_row(summary, name)
        if words is not None:
            measured = allocation is not None and name == "block"  # before the first step
            label = "shapes" if measured else f"{name.replace('_', ' ')}: steps, candidates"
            rows.add_row(label, "", *words)
    rows.add_row("candidates evaluated", "", search_in_words(evaluations), "")
    if evaluations["reused"]:
        # each candidate has one evaluation a batch; those of earlier processes are not counted
        reused = f"{evaluations['reused']:,} from the store"
        rows.add_row("evaluations (candidate, batch)", "", f"{evaluations['scored']:,}", reused)
    for kind, what in DEVIATIONS.items():
        if evaluations[kind]:
            rows.add_row(what, "", f"{evaluations[kind]:,}", "last digits may differ")
    for span in summary[ARITHMETIC][1:]:
        rows.add_row(f"computed otherwise from step {span['from_step']} on", "", span["device"], "")
    rows.add_row("evaluators", "", str(summary["num_evaluators"]), "")
    rows.add_row("time of this run", "", duration(summary["seconds"]), "")


def _cells(
    pair: Mapping[str, float | None], show: Any, missing: str = "not finite"
) -> tuple[str, str, str]:
    dense, pruned = pair["dense"], pair["pruned"]
    if dense is None or pruned is None:
        return (
            show(dense) if dense is not None else missing,
            show(pruned) if pruned is not None else missing,
            "",
        )
    return show(dense), show(pruned), f"{pruned / dense - 1:+.1%}" if dense else ""
