"""Results are shared by runs that compute alike, and by no others."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import Cli, Search
from tests.pipelines.prune.test_allocation import ALLOCATION
from workers.evaluators.shapes import Evaluator


def test_scores_are_for_those_who_compute_alike(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MKL chooses other kernels by this variable, so it is part of every score's key."""
    monkeypatch.delenv("MKL_CBWR", raising=False)
    first = search(folder="a")
    assert first.status == 0, first.output
    assert first.summary["evaluations"]["scored"] > 50
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    other = search(folder="b")
    assert other.summary["evaluations"] == first.summary["evaluations"]
    assert search(folder="c").summary["evaluations"]["scored"] == 0
    monkeypatch.delenv("MKL_CBWR")
    again = search(folder="d")
    assert again.summary["evaluations"]["scored"] == 0
    assert again.trajectory == first.trajectory
    with sqlite3.connect(tmp_path / "scores.db") as store:
        texts = [json.loads(text) for (text,) in store.execute("select description from contexts")]
    assert {text["arithmetic"]["variables"] for text in texts} == {"", "MKL_CBWR=COMPATIBLE"}
    assert all(text["arithmetic"]["processor"] for text in texts)


def test_those_of_an_allocation_are_counted_when_it_goes_on(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = Evaluator._scores

    def full(evaluator: Evaluator, task: Any, prefix: Any, candidates: Any) -> Any:
        if task.kind == "kl" and len(candidates) > 1 and len(prefix.input_ids_BT) == 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return scores(evaluator, task, prefix, candidates)

    monkeypatch.setattr(Evaluator, "_scores", full)
    first = search(*ALLOCATION)
    assert first.status == 0, first.output
    halved = first.summary["evaluations"]["halved"]
    assert halved > 10
    assert first.read("allocation.json")["deviating"] == {"halved": halved}
    again = search("resume=true", bare=True)
    assert again.status == 0, again.output
    assert again.summary["evaluations"]["halved"] == halved


def test_scores_of_halved_batches_are_counted_wherever_they_come_from(
    search: Search, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, failures = Evaluator._scores, iter([True] * 3)

    def full(evaluator: Evaluator, task: Any, prefix: Any, candidates: Any) -> Any:
        if len(candidates) > 1 and len(prefix.input_ids_BT) == 4 and next(failures, False):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return scores(evaluator, task, prefix, candidates)

    monkeypatch.setattr(Evaluator, "_scores", full)
    first = search(folder="a")
    assert first.status == 0, first.output
    halved = first.summary["evaluations"]["halved"]
    assert first.summary["oom_splits"] == 3
    assert 3 <= halved < first.summary["evaluations"]["scored"]
    again = search(folder="b")
    evaluations = again.summary["evaluations"]
    assert (evaluations["scored"], evaluations["halved"]) == (0, halved)
    assert again.summary["oom_splits"] == 0
    assert f"scores of halved batches {halved} " in " ".join(again.output.replace("│", "").split())
    lines = [json.loads(line) for line in again.trajectory]
    in_steps = sum(line.get("deviating", {}).get("halved", 0) for line in lines)
    assert in_steps == halved
    assert "deviating" not in lines[-1], "no step but the first ones"
    shown = cli("status", again.folder, folder=None).output
    assert f"last digits may differ in {halved} scores of halved batches" in " ".join(shown.split())
    search("resume=true", f"output_dir={again.folder}", bare=True)
    assert again.summary["evaluations"]["halved"] == halved, "those of earlier processes count"
    report = cli("report", again.folder, "log_to_mlflow=false")
    assert report.status == 0, report.output
    assert "of halved batches" in (report.folder / "report.html").read_text()
