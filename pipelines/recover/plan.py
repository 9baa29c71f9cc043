"""What a recovery will take, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from pipelines.cli.console import duration
from pipelines.recover.job import RecoverJob
from pruning.costs.accounting import NOT_KNOWN, shown_count
from pruning.costs.memory import shown_bytes

_NO_RATE = "said with each checkpoint, as there is no rate of a search"


def recovery_plan(job: RecoverJob) -> dict[str, Any]:
    """Of all updates; held-out text may end it before. Names are those of plan.json.

    Where the cluster says how many processes there are, hours are those of one.
    """
    settings, flops, tflops = job.settings, job.flops(), job.tflops_of_search
    share = -(-settings.num_parts // (job.num_processes or 1)) / settings.num_parts
    accounting, shape = job.pruned.accounting, job.pruned.shape
    return {
        "model": job.pruned.model_name,
        "num_parameters": accounting.num_parameters(shape),
        "ratio": accounting.ratio(shape),
        "steps": settings.steps,
        "num_tokens": settings.steps * settings.batch_size * job.text.sequence_length,
        "flops": flops,
        "num_parts": settings.num_parts,
        "num_processes": job.num_processes,
        "dtype": job.dtype,
        "peak_bytes": job.needed_bytes,
        "rate": {"source": "run" if tflops else None, "tflops": tflops or None},
        "hours": None if flops is None or not tflops else share * flops / (tflops * 1e12 * 3600),
    }


def plan_in_words(plan: Mapping[str, Any]) -> str:
    """In one line."""
    said = f"{plan['num_tokens']:,} tokens, {shown_bytes(plan['peak_bytes'])} of memory"
    if plan["num_processes"] != 1:
        said += f" in each of {_processes(plan)}"
    if plan["flops"] is None:
        return f"{said}; FLOPs and time are {NOT_KNOWN} of this architecture"
    said += f", {plan['flops']:.2e} FLOPs"
    if plan["hours"] is None:
        return f"{said}; the time left is {_NO_RATE}"
    return f"{said}, {duration(plan['hours'] * 3600)} at the rate of an evaluator of the search"


def plan_table(plan: Mapping[str, Any]) -> Table:
    """The same as a table."""
    rows = Table(
        title=f"recovery of {plan['model']}, {shown_count(plan['num_parameters'])} parameters, "
        f"{plan['ratio']:.1%} removed: at most",
        title_justify="left",
        show_header=False,
    )
    rows.add_column("")
    rows.add_column("", justify="right")
    rows.add_row("updates", f"{plan['steps']:,}")
    if plan["num_processes"] != 1:
        rows.add_row("trained by", _processes(plan))
    rows.add_row("tokens", f"{plan['num_tokens']:,}")
    rows.add_row("FLOPs", NOT_KNOWN if plan["flops"] is None else f"{plan['flops']:.2e}")
    each = "" if plan["num_processes"] == 1 else " of each"
    rows.add_row(f"memory{each} ({plan['dtype']})", shown_bytes(plan["peak_bytes"]))
    if plan["rate"]["source"] is not None:
        rate = f"{plan['rate']['tflops']:.3g} TFLOP/s, as an evaluator of the search had"
        rows.add_row("rate", rate)
    rows.add_row("time", _time(plan))
    return rows


def _processes(plan: Mapping[str, Any]) -> str:
    count = plan["num_processes"]
    if count is None:
        return f"as many processes as fit, up to {plan['num_parts']}"
    return f"{count} processes"


def _time(plan: Mapping[str, Any]) -> str:
    if plan["flops"] is None:
        return f"{NOT_KNOWN}: FLOPs of this architecture are not counted"
    return _NO_RATE if plan["hours"] is None else duration(plan["hours"] * 3600)
