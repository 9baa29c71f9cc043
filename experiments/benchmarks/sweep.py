"""One sweep over seven targets against seven separate searches: evaluations paid, and whether the
results are the same to the byte.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.report import Report
from experiments.benchmarks.workload import MODEL, REPOSITORY

TARGETS = (0.07, 0.10, 0.12, 0.14, 0.15, 0.18, 0.22)
"""Those of the published Llama-2-7B runs."""
BLOCK_BOUND = 0.25
"""Block evaluations of the sweep / of the separate searches, at most."""
SETTINGS = (
    f"model.path={MODEL}",
    "calibration=pydoc",
    "calibration.num_block_samples=1",
    "calibration.num_width_samples=1",
    "calibration.num_heldout_samples=2",
    "calibration.sequence_length=32",
    "calibration.batch_size=1",
    "search.mlp_group_channels=512",
)
_TIMES = ("seconds", "timestamp")
_STAGES = {"block": "blocks", "mlp_channels": "MLP channels", "attention_heads": "attention heads"}


@dataclass(frozen=True, slots=True)
class Search:
    """One finished search: evaluations by stage, the files that it leaves without their times, and
    its summary.
    """

    evaluations: Mapping[str, int]
    files: Mapping[str, bytes]
    summary: Mapping[str, Any]


def run() -> Report:
    """Runs both in folders that go afterwards, each with a store of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        swept, sweep_s = _timed(
            "sweep", [f"search.target_ratio=[{','.join(map(str, TARGETS))}]"], folder / "sweep"
        )
        alone_s, same = 0.0, []
        separate: list[Search] = []
        for target in TARGETS:
            _, seconds = _timed("prune", [f"search.target_ratio={target}"], folder / str(target))
            alone_s += seconds
            separate.append(_read(folder / str(target)))
            same.append(_read(swept / f"target_ratio_{target:g}").files == separate[-1].files)
        report = json.loads((swept / "sweep.json").read_text())
    paid = {stage: report["evaluations"].get(stage, {}).get("new", 0) for stage in _STAGES}
    needed = {
        stage: sum(search.evaluations.get(stage, 0) for search in separate) for stage in _STAGES
    }
    rows = [
        (label, str(paid[stage]), str(needed[stage]), f"{paid[stage] / needed[stage]:.3f}")
        for stage, label in _STAGES.items()
        if needed[stage]
    ]
    scored = sum(point["evaluations"]["scored"] for point in report["points"])
    scored_alone = sum(search.summary["evaluations"]["scored"] for search in separate)
    rows.append(
        (
            "all, and the dense and final models",
            str(scored),
            str(scored_alone),
            f"{scored / scored_alone:.3f}",
        )
    )
    rows.append(("seconds", f"{sweep_s:.0f}", f"{alone_s:.0f}", f"{sweep_s / alone_s:.3f}"))
    missed = (
        []
        if paid["block"] <= BLOCK_BOUND * needed["block"]
        else [f"block evaluations are above {BLOCK_BOUND:g} of those of separate searches"]
    )
    missed += [
        f"target {target:g}: the files differ"
        for target, equal in zip(TARGETS, same, strict=True)
        if not equal
    ]
    return Report(
        "sweep",
        "Seven targets: one sweep against seven searches",
        {"targets": ", ".join(map(str, TARGETS)), "settings": " ".join(SETTINGS)},
        ("evaluations", "one sweep", "seven searches", "ratio"),
        tuple(rows),
        (
            f"Trajectory (without times), shape, channel order and perplexities of {sum(same)} "
            f"of {len(same)} targets are the same to the byte.",
        ),
        tuple(missed),
    )


def _timed(job: str, words: Sequence[str], folder: Path) -> tuple[Path, float]:
    """Runs a command of the product as a user does."""
    own = (
        f"output_dir={folder}",
        f"store.url=sqlite:///{folder}.db",
        f"tracking.uri=sqlite:///{folder}-mlflow/mlflow.db",
    )
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", f"pipelines.{job}", *SETTINGS, *words, *own],
        cwd=REPOSITORY,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return folder, time.perf_counter() - started


def _read(folder: Path) -> Search:
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "trajectory.jsonl").read_text().splitlines()]
    evaluations: dict[str, int] = {}
    for line in lines:
        evaluations[line["stage"]] = evaluations.get(line["stage"], 0) + len(line["candidates"])
    files = {
        name: (folder / name).read_bytes()
        for name in ("shape.json", "pruning_config.json", "channel_order.safetensors")
    }
    files["trajectory.jsonl"] = json.dumps(
        [{name: value for name, value in line.items() if name not in _TIMES} for line in lines]
    ).encode()
    files["perplexity"] = json.dumps(summary["perplexity"]).encode()
    return Search(evaluations, files, summary)
