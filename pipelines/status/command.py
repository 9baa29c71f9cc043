"""`multipruner status OUTPUT_DIR`: how far a search or a recovery is, what its evaluators are
doing, and what went wrong so far. Reads files only.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.cli.commands import command_line, resuming
from pipelines.cli.console import console, duration
from pipelines.cli.plain import Parser, run_plain
from pipelines.runs.candidates import scored_in_words
from pipelines.runs.files import STATUS, read_json
from pipelines.runs.folder import is_held, pid_namespace
from pipelines.runs.journal import DEVIATIONS
from pruning.errors import InputError

_STALE_S = 30.0
_OVER = ("finished", "failed", "stopped")


def read_status(folder: Path) -> dict[str, Any]:
    """What `status.json` says, and under `alive` whether a driver is at work in the folder.

    Of a sweep, that of the point which was at work last.

    Raises:
        InputError: the folder holds no run, or the file is damaged.
    """
    path = folder / STATUS
    points = (
        []
        if path.exists()
        else sorted(folder.glob(f"*/{STATUS}"), key=lambda file: file.stat().st_mtime)
    )
    if points:
        path = points[-1]
    if not path.exists():
        raise InputError(
            f"output_dir: no {STATUS} in {folder.absolute()}; give the output_dir of a search or "
            "a recovery that has started"
        )
    status = read_json(
        path, option="output_dir", fields=("state", "host", "pid", "started", "updated")
    )
    if points:
        status["point"] = {"name": path.parent.name, "number": len(points)}
    status["age_s"] = round(max(0.0, time.time() - status["updated"]), 1)
    over = status["state"] in _OVER and not points
    status["alive"] = not over and _is_alive(folder, status)
    if not status["alive"] and status["state"] not in _OVER:
        status["state"] = "interrupted"
        status["resume"] = (
            f"the same {command_line('recover')} again"
            if "recovery" in status
            else resuming("sweep" if points else "prune", folder.absolute())
        )
    return status


def _is_alive(folder: Path, status: Mapping[str, Any]) -> bool:
    """On the driver's own machine its lock on the folder tells, unless it is in another container,
    whose locks are not listed. On shared storage locks may mean nothing. There it must have spoken
    lately.
    """
    here = status["host"] == socket.gethostname()
    held = is_held(folder) if here else None
    if held or (held is False and status.get("pid_namespace") == pid_namespace()):
        return held
    return bool(status["age_s"] < _STALE_S)


def page(status: Mapping[str, Any]) -> RenderableType:
    """The whole of it, as a person reads it."""
    return Group(
        *(part for part in (_job(status), _evaluators(status), _faults(status)) if part is not None)
    )


def main() -> None:
    """Does what the words of the command line say."""
    run_plain("status", _options, _show)


def _options(parser: Parser) -> None:
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--watch", action="store_true")
    parser.add_argument("--json", action="store_true")


def _show(arguments: argparse.Namespace) -> None:
    status = read_status(arguments.output_dir)
    if arguments.json:
        sys.stdout.write(json.dumps(status, indent=2) + "\n")
    elif arguments.watch:
        with Live(page(status), console=console, auto_refresh=False) as live:
            while status["alive"]:
                time.sleep(1.0)
                status = read_status(arguments.output_dir)
                live.update(page(status), refresh=True)
    else:
        console.print(page(status))


def _job(status: Mapping[str, Any]) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    recovery = status.get("recovery")
    state = status["state"]
    if state == "interrupted":
        state += (
            f": its driver (pid {status['pid']} on {status['host']}) is gone; to go on: "
            f"{status['resume']}"
        )
    elif status["alive"] and status["age_s"] > _STALE_S:
        state += (
            f", but its driver (pid {status['pid']} on {status['host']}) has said nothing "
            f"for {duration(status['age_s'])}"
        )
    if status.get("result"):
        state += f": {status['result']}"
    if "point" in status:
        rows.add_row(
            "sweep", f"point {status['point']['name']}, number {status['point']['number']}"
        )
    rows.add_row("search" if recovery is None else "recovery", state)
    for row in _updates(recovery):
        rows.add_row(*row)
    if "step" in status:
        perplexity = (
            "" if status.get("perplexity") is None else f", perplexity {status['perplexity']:.3f}"
        )
        rows.add_row(
            "step",
            (
                f"{status['step']} ({status['stage']}): ratio {status['ratio']:.2%}"
                + (f" of {target:.2%}" if (target := status["target_ratio"]) is not None else "")
                + (perplexity + _scored(status))
            ),
        )
    if status.get("rate") and status["alive"]:
        unit = "candidates" if recovery is None else "updates"
        rows.add_row("rate", f"{status['rate']:.2f} {unit}/s, {duration(status['left_s'])} left")
    if "evaluations" in status:
        counts = status["evaluations"]
        rows.add_row(
            "evaluations",
            (
                f"{counts['scored']:,} scored, {counts['reused']:,} from the store, "
                f"{status.get('lost_evaluations', 0):,} lost in flight"
            ),
        )
        deviating = [
            f"{counts[kind]:,} {words}" for kind, words in DEVIATIONS.items() if counts.get(kind)
        ]
        if deviating:
            rows.add_row("last digits may differ in", ", ".join(deviating))
    if status.get("tracking"):
        rows.add_row("MLflow", status["tracking"])
    running = duration(status["updated"] - status["started"])
    rows.add_row("updated", f"{duration(status['age_s'])} ago; running for {running}")
    return rows


def _scored(status: Mapping[str, Any]) -> str:
    """Of the last step of a search that leaves candidates out."""
    if "unscored" not in status:
        return ""
    return f", {scored_in_words(status['candidates'], status['unscored'])} candidates scored"


def _updates(recovery: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Of a recovery: how far it is, and what it has gained."""
    if recovery is None:
        return []
    rows = [("update", f"{recovery['step']} of {recovery['steps']}")]
    if recovery["loss"] is not None:
        rows[0] = ("update", f"{rows[0][1]}: loss {recovery['loss']:.4f}")
    if recovery["heldout_perplexity"]:
        said = ", ".join(f"{name} {value:.3f}" for name, value in _known(recovery))
        rows.append(("perplexity, held-out text", said))
    return rows


def _known(recovery: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Perplexities by model; None stands for one that is too large for a number."""
    values = recovery["heldout_perplexity"]
    return [(name, value) for name, value in values.items() if value is not None]


def _evaluators(status: Mapping[str, Any]) -> RenderableType | None:
    if not status.get("evaluators"):
        return None
    rows = Table(title="evaluators", title_justify="left")
    for name, side in (
        ("", "right"),
        ("state", "left"),
        ("node", "left"),
        ("pid", "right"),
        ("device", "left"),
        ("tasks", "right"),
        ("task", "left"),
    ):
        rows.add_column(name, justify=side)  # type: ignore[arg-type]
    for evaluator in status["evaluators"]:
        gpus = f" {','.join(evaluator['gpus'])}" if evaluator.get("gpus") else ""
        cells = (
            evaluator["number"],
            evaluator["state"],
            evaluator.get("node", ""),
            evaluator.get("pid", ""),
            f"{evaluator.get('device', '')}{gpus}",
        )
        rows.add_row(
            *map(str, cells),
            str(evaluator["num_tasks"]),
            evaluator["task"] if status["alive"] else "",
        )
    return rows


def _faults(status: Mapping[str, Any]) -> RenderableType | None:
    if not status.get("faults"):
        return None
    counts = ", ".join(f"{count} {kind}" for kind, count in status["faults"].items())
    speculative = status.get("speculative_tasks", status.get("copied_tasks", 0))  # its name in 0.1
    lines = [
        f"faults: {counts}; {speculative} late tasks were given to a second evaluator",
        *map(_fault, status["recent_faults"][-5:]),
    ]
    return Text("\n".join(lines))


def _fault(fault: Mapping[str, Any]) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(fault["timestamp"]))
    return f"  {when} {fault['evaluator']}: {fault['kind']} ({fault['cause']}); {fault['decision']}"
