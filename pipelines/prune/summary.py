"""What a search came to: summary.json for scripts, a table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, get_args

import torch
from rich.table import Table

from pipelines.cli.console import duration
from pipelines.plan.against_actual import beside_plan_row
from pruning.costs.accounting import Accounting
from pruning.search.stages import StageName
from pruning.shape import ModelShape


def costs(
    accounting: Accounting, shape: ModelShape, *, context_length: int, dtype: str
) -> dict[str, dict[str, int]]:
    """Dense against pruned, from the configuration alone."""
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


def table(summary: Mapping[str, Any]) -> Table:
    """Dense against pruned, as a person reads it."""
    rows = Table(
        title=(
            f"{summary['model']}: {summary['ratio']:.1%} of the parameters removed (asked for "
            f"{summary['target_ratio']:.1%})"
        ),
        title_justify="left",
    )
    for name, side in (("", "left"), ("dense", "right"), ("pruned", "right"), ("change", "right")):
        rows.add_column(name, justify=side)  # type: ignore[arg-type]
    labels = {
        "heldout": "perplexity, held-out text",
        "block": "perplexity, block calibration",
        "width": "perplexity, width calibration",
    }
    for name, label in labels.items():
        pair = summary["perplexity"].get(name)
        if pair:
            rows.add_row(label, *_cells(pair, lambda value: f"{value:.2f}"))
    rows.add_row(
        "parameters", *_cells(summary["num_parameters"], lambda value: f"{value / 1e6:,.2f} M")
    )
    rows.add_row(
        f"FLOPs per token at {summary['context_length']} tokens",
        *_cells(summary["flops_per_token"], lambda value: f"{value / 1e6:,.1f} M"),
    )
    rows.add_row(
        f"KV-cache bytes per token ({summary['dtype']})",
        *_cells(summary["kv_cache_bytes_per_token"], lambda value: f"{value:,.0f}"),
    )
    evaluations, steps = summary["evaluations"], Counter(summary["steps"])
    rows.add_section()
    if "search.strategy" in summary["identity"]:  # not to be taken for the greedy search
        rows.add_row("strategy", "", summary["strategy"].replace("_", " "), "")
    rows.add_row(
        "steps: blocks, channels, heads",
        "",
        f"{steps['block']}, {steps['mlp_channels']}, {steps['attention_heads']}",
        "",
    )
    for name in get_args(StageName):
        words = beside_plan_row(summary, name)
        if words is not None:
            rows.add_row(f"{name.replace('_', ' ')}: steps, candidates", "", *words)
    reused = f"{evaluations['reused']:,} from the store" if evaluations["reused"] else ""
    rows.add_row("candidates evaluated", "", f"{evaluations['candidates']:,}", reused)
    rows.add_row("evaluators", "", str(summary["num_evaluators"]), "")
    rows.add_row("time of this run", "", duration(summary["seconds"]), "")
    return rows


def _cells(pair: Mapping[str, float | None], show: Any) -> tuple[str, str, str]:
    dense, pruned = pair["dense"], pair["pruned"]
    if dense is None or pruned is None:
        return (
            show(dense) if dense is not None else "not finite",
            show(pruned) if pruned is not None else "not finite",
            "",
        )
    return show(dense), show(pruned), f"{pruned / dense - 1:+.1%}" if dense else ""
