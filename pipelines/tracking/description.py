"""What a run says of itself on MLflow's page, in Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from pipelines.config.target import in_words

MAX_LENGTH = 8_000
"""Characters that MLflow takes in a tag."""

MEASURED = "## Measured"
"""Heading of what an evaluation adds to the page of a search."""

_WIDTH = 100
_MAX_ROWS = 40
_MAX_SAMPLES, _SAMPLE_WIDTH = 4, 240
"""A page holds so many characters, and the command comes after them."""
"""Of a table of points."""

_SIZES = {
    "num_parameters": "parameters",
    "flops_per_token": "FLOPs per token",
    "kv_cache_bytes_per_token": "KV-cache bytes per token",
}
_STAGES = {"block": "blocks", "mlp_channels": "MLP channels", "attention_heads": "heads"}

Row = tuple[str, float | None, float | None]
"""What it is, dense, pruned."""


def search_description(summary: Mapping[str, Any], command: str) -> str:
    """A search that has ended.

    Args:
        summary: what `summary.json` says.
        command: that repeats it.
    """
    asked = in_words(summary["target_ratio"], summary.get("targets"))
    reached = summary["status"] == "target reached"
    return _joined(
        f"**{_plain(summary['model'])}, {summary['ratio']:.1%} of the parameters removed** "
        f"(asked for {asked}; strategy {_plain(summary['strategy'])})",
        "" if reached else f"**{_plain(summary['status'])}**",
        _table("dense", "pruned", _of_search(summary)),
        _path(summary),
        _samples(summary.get("samples") or ()),
        _again(command),
    )


def started_description(model: str, what: str, command: str) -> str:
    """Of what has only begun.

    Args:
        what: is done with the model, in words.
    """
    return _joined(f"**{_plain(model)}**, {_plain(what)}", _again(command))


def evaluation_description(report: Mapping[str, Any], command: str) -> str:
    """What was measured, to stand below `MEASURED`.

    Args:
        report: what `evaluation.json` says.
    """
    gone = "" if report["ratio"] is None else f", {report['ratio']:.1%} of the parameters removed"
    return _joined(
        f"**{_plain(report['model'])}{gone}**",
        _table("dense", "pruned", _of_evaluation(report)),
        _again(command),
    )


def recovery_description(found: Mapping[str, Any], command: str) -> str:
    """A recovery that has ended.

    Args:
        found: what `recovery.json` says.
    """
    perplexity = found["heldout_perplexity"]
    rows: list[Row] = [("perplexity, held-out text", perplexity["pruned"], perplexity["recovered"])]
    return _joined(
        f"**{_plain(found['model'])}, {found['ratio']:.1%} of the parameters removed: recovered** "
        f"in {found['best_step']} updates; the dense model has a perplexity of "
        f"{_number(perplexity['dense'])}",
        _table("pruned", "recovered", rows),
        _again(command),
    )


def sweep_description(report: Mapping[str, Any], command: str) -> str:
    """A sweep.

    Args:
        report: what `sweep.json` says.
    """
    points = report["points"]
    names = list(dict.fromkeys(name for row in points for name in row["values"]))
    lines = ["| | ratio | " + " | ".join(_plain(name.replace("_", " ")) for name in names) + " |"]
    lines.append("|---|--:|" + "--:|" * len(names))
    for row in points[:_MAX_ROWS]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.1%}"
        cells = [ratio, *(_number(row["values"].get(name)) for name in names)]
        lines.append(f"| {_plain(row['name'])} | {' | '.join(cells)} |")
    more = len(points) - _MAX_ROWS
    return _joined(
        f"**{len(points)} points**; best: {_plain(report['best'] or 'none')}, "
        f"{_plain(report['rule'])}",
        "\n".join(lines),
        f"and {more} more" if more > 0 else "",
        _again(command),
    )


def failed(described: str, problem: str) -> str:
    """The same with what it failed of."""
    quoted = "\n".join(f"    {line}" for line in problem[:2_000].splitlines())
    return _joined("**Failed**", quoted, described)


def with_section(described: str, heading: str, text: str) -> str:
    """The same with a last section, in the place of what was below that heading."""
    return _joined(described.partition(heading)[0].rstrip(), heading, text)


def with_section_of(said: str, heading: str, described: str) -> str:
    """The same with the last section that was there before under that heading."""
    _, found, text = said.partition(heading)
    return with_section(described, heading, text.strip()) if found else described


def with_pictures(described: str, run_id: str, names: Iterable[str]) -> str:
    """The same with artifacts of the run, which MLflow's page shows below."""
    shown = [f"![{name}](get-artifact?path={name}&run_uuid={run_id})" for name in names]
    return _joined(described, *shown)


def _of_search(summary: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = [
        (
            f"perplexity, {name.replace('heldout', 'held-out').replace('_', ' ')} text",
            pair["dense"],
            pair["pruned"],
        )
        for name, pair in summary["perplexity"].items()
        if name.startswith("heldout")
    ]
    rows = rows or [
        (f"perplexity, {name} calibration", pair["dense"], pair["pruned"])
        for name, pair in summary["perplexity"].items()
    ]
    return rows + [
        (label, summary[name]["dense"], summary[name]["pruned"]) for name, label in _SIZES.items()
    ]


def _of_evaluation(report: Mapping[str, Any]) -> list[Row]:
    """One model that was measured alone is the dense one, or the pruned."""
    is_pruned = report["shape"] is not None
    dense = report["dense"] if is_pruned else report
    pruned = report if is_pruned else None

    def row(label: str, *keys: str) -> Row:
        values: list[Any] = [dense, pruned]
        for key in keys:
            values = [None if each is None else each.get(key) for each in values]
        return label, values[0], values[1]

    rows = [row(f"perplexity, {name}", "perplexity", name) for name in report["perplexity"]]
    for task, metrics in report["tasks"].items():
        rows += [
            row(f"{task}, {metric.replace('_', ' ')}", "tasks", task, metric)
            for metric in [next((name for name in ("acc_norm", "acc") if name in metrics), None)]
            if metric is not None
        ]
    return rows


def _path(summary: Mapping[str, Any]) -> str:
    """How many steps of which kind, and the caveat where few tokens decided."""
    steps, ties = summary["steps"], summary.get("near_ties") or {}
    counts = {stage: steps.count(stage) for stage in dict.fromkeys(steps)}
    said = ", ".join(f"{count} of {_STAGES.get(stage, stage)}" for stage, count in counts.items())
    near = (
        f"; {ties['near']} of {ties['known']} are near-ties, which another text may well decide "
        "otherwise"
        if ties.get("known")
        else ""
    )
    number = "1 step" if len(steps) == 1 else f"{len(steps)} steps"
    return f"{number}: {said}{near}." if steps else ""


def _samples(samples: Iterable[Mapping[str, str]]) -> str:
    """What both models wrote, side by side."""
    rows = [
        " | ".join(
            _plain(_shortened(" ".join(sample[name].split())))
            for name in ("prompt", "dense", "pruned")
        )
        for sample in islice(samples, _MAX_SAMPLES)
    ]
    lines = ["| after | dense writes | pruned writes |", "|---|---|---|"]
    return "\n".join(lines + [f"| {row} |" for row in rows]) if rows else ""


def _shortened(text: str) -> str:
    return text if len(text) <= _SAMPLE_WIDTH else f"{text[:_SAMPLE_WIDTH]} ..."


def _table(before: str, after: str, rows: Iterable[Row]) -> str:
    lines = [f"| | {before} | {after} | change |", "|---|--:|--:|--:|"]
    for name, first, second in rows:
        change = f"{second / first - 1:+.1%}" if first and second is not None else ""
        lines.append(f"| {_plain(name)} | {_number(first)} | {_number(second)} | {change} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _again(command: str) -> str:
    """Of several lines, as a shell takes it: the page does not break long ones."""
    lines = [""]
    for word in map(shlex.quote, shlex.split(command)):
        if lines[-1] and len(lines[-1]) + len(word) > _WIDTH:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "To repeat it:\n\n    " + " \\\n      ".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _plain(text: str) -> str:
    """As text, whatever Markdown or HTML it looks like."""
    return "".join(f"\\{each}" if each in "\\`*_{}[]<>()#|!~&" else each for each in text)


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
