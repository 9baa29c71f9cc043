"""What an evaluation came to: evaluation.json for scripts, a table for people and for MLflow,
metrics.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from rich.table import Table

Row = tuple[str, str, float | None, float | None, float | None]
"""What, metric, dense, measured (the recovered or pruned model; the dense one where it is alone),
standard error of that.
"""

_PERPLEXITY, _AVERAGE = "token perplexity", "average"
_SPEEDS = ("prefill_tokens_per_s", "decode_tokens_per_s")
_SIZES = {
    "num_parameters": "parameters",
    "disk_bytes": "bytes on disk",
    "memory_bytes": "bytes in memory",
    "kv_cache_bytes_per_token": "KV-cache bytes per token",
    "flops_per_token": "FLOPs per token",
}


def rows(report: Mapping[str, Any]) -> list[Row]:
    """One row for each number with a dense counterpart: perplexities, then tasks, then their
    average.
    """
    found: list[tuple[str, str, float | None, float | None]] = [
        (name, _PERPLEXITY, value, None) for name, value in report["perplexity"].items()
    ]
    for name, values in report["tasks"].items():
        found += [
            (name, metric, values[metric], values.get(stderr_name(metric)))
            for metric in metrics_of(values)
        ]
    if report["average"] is not None:
        found.append((_AVERAGE, "acc_norm, else acc", report["average"], None))
    dense = report["dense"]
    return [
        (name, metric, _value(dense, name, metric), value, stderr)
        for name, metric, value, stderr in found
    ]


def _value(measured: Mapping[str, Any] | None, name: str, metric: str) -> float | None:
    """What was measured of another model, of a row."""
    if measured is None:
        return None
    found: float | None
    if metric == _PERPLEXITY:
        found = measured["perplexity"].get(name)
    elif name == _AVERAGE:
        found = measured["average"]
    else:
        found = measured["tasks"].get(name, {}).get(metric)
    return found


def _between(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What was measured before the recovery, of a recovered model."""
    found: Mapping[str, Any] | None = report.get("pruned")
    return found


def metrics_of(values: Mapping[str, Any]) -> list[str]:
    """The metrics of a task, without standard errors and counts."""
    return [name for name in values if name != "num_documents" and "_stderr" not in name]


def stderr_name(metric: str) -> str:
    """The name of the standard error of a metric."""
    name, comma, filter_name = metric.partition(",")
    return f"{name}_stderr{comma}{filter_name}"


def conditions(report: Mapping[str, Any]) -> dict[str, str]:
    """What decides the scores of a model, by name: accuracies that differ in one of these do not
    compare, nor do perplexities in different dtypes.
    """
    settings = report["settings"]
    names = ("dtype", "num_fewshot", "limit", "max_length", "data_dir")
    found = {name: str(settings.get(name)) for name in names}
    found["lm-eval"] = str(report.get("versions", {}).get("lm_eval"))
    return found | {
        f"documents of {name}": str(values.get("num_documents"))
        for name, values in report["tasks"].items()
    }


def table(report: Mapping[str, Any]) -> Table:
    """As a person reads it."""
    pruned, between = report["shape"] is not None, _between(report)
    shown = Table(title=_title(report), title_justify="left")
    columns = (
        {"": "left", "metric": "left", "dense": "right"}
        | ({"pruned": "right"} if pruned else {})
        | ({"recovered": "right"} if between else {})
        | {"stderr": "right", "change": "right"}
    )
    for name, side in columns.items():
        shown.add_column(name, justify=side)  # type: ignore[arg-type]
    previous = ""
    for name, metric, dense, value, stderr in rows(report):
        before = (_value(between, name, metric),) if between else ()
        values = (dense, *before, value) if pruned else (value,)
        cells = [
            *map(_number, values),
            "" if stderr is None else _number(stderr),
            _change(metric, dense, value) if pruned else "",
        ]
        shown.add_row("" if name == previous else name, metric, *cells)
        previous = name
    cost = report["cost"] or {}
    if cost:
        shown.add_section()
        for name, label in (_SIZES | {name: _speed_label(name) for name in _SPEEDS}).items():
            roles = ("dense", "pruned") if pruned else ("dense",)
            shown_costs = [(cost.get(role) or {}).get(name) for role in roles]
            cells = [_count(each) for each in shown_costs]
            shown.add_row(
                "cost" if name == "num_parameters" else "",
                label,
                *cells,
                *([""] if between else []),
                "",
                _ratio((cost.get("ratio") or {}).get(name), *shown_costs),
            )
    _add_engines(shown, report, pruned=pruned, between=bool(between))
    return shown


def _add_engines(shown: Table, report: Mapping[str, Any], *, pruned: bool, between: bool) -> None:
    for engine, found in (report.get("engines") or {}).items():
        shown.add_section()
        for name in _SPEEDS:
            roles = ("dense", "pruned") if pruned else ("dense",)
            speeds = [(found.get(role) or {}).get(name) for role in roles]
            shown.add_row(
                f"in {engine}" if name == _SPEEDS[0] else "",
                _speed_label(name),
                *map(_count, speeds),
                *([""] if between else []),
                "",
                _ratio((found.get("ratio") or {}).get(name), *speeds),
            )


def _speed_label(name: str) -> str:
    return name.replace("_per_s", "/s").replace("_", " ")


def as_csv(report: Mapping[str, Any]) -> str:
    """The table as MLflow's page shows it."""
    text = io.StringIO()
    writer = csv.writer(text)
    between, last = _between(report), "pruned" if report["shape"] is not None else "measured"
    columns = ("dense", "pruned", "recovered") if between else ("dense", last)
    writer.writerow(("benchmark", "metric", *columns, "stderr"))
    for name, metric, dense, value, stderr in rows(report):
        before = (_value(between, name, metric),) if between else ()
        writer.writerow((name, metric, dense, *before, value, stderr))
    return text.getvalue()


def _title(report: Mapping[str, Any]) -> str:
    ratio = report["ratio"]
    return str(report["model"]) + (
        f": {ratio:.1%} of the parameters removed" if ratio is not None else ""
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def _count(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['median']:,.1f}"
    return "-" if value is None else f"{value:,.0f}"


def _change(metric: str, dense: float | None, value: float | None) -> str:
    """Of perplexities relative, of accuracies the difference."""
    if dense is None or value is None:
        return ""
    if metric == _PERPLEXITY:
        return f"{value / dense - 1:+.1%}" if dense else ""
    return f"{value - dense:+.4f}"


def _ratio(value: Any, dense: Any = None, pruned: Any = None) -> str:
    """Of speeds that of the two medians of the row, and the range of the rounds, which holds it:
    the median of the rounds' ratios can be on the other side of 1.
    """
    if isinstance(value, Mapping):
        shown = pruned["median"] / dense["median"]
        return f"x {shown:.2f} ({value['lowest']:.2f} to {value['highest']:.2f})"
    return "" if value is None else f"x {value:.3f}"
