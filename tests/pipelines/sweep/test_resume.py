"""A sweep that was stopped, damaged or made longer goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.tracking.tracker import Tracker
from tests.conftest import ROOT
from tests.pipelines.sweep.conftest import SEVEN, Sweep, report_of, rows_in_store


@pytest.mark.slow
def test_a_sweep_killed_in_its_third_point_and_started_again(
    run_sweep: Sweep, base: list[str], tmp_path: Path
) -> None:
    """The same table as of a sweep that nobody disturbed, and nothing is scored twice."""
    whole = run_sweep(SEVEN, f"store.url=sqlite:///{tmp_path}/whole.db", folder="whole")
    command = [
        sys.executable,
        "-m",
        "pipelines.sweep",
        *base,
        SEVEN,
        f"output_dir={tmp_path}/sweep",
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    third = (
        tmp_path / "sweep" / "target_ratio_0.26" / "trajectory.jsonl"
    )  # they run from the largest to the smallest
    try:
        deadline = time.monotonic() + 120
        while (
            not (third.exists() and third.read_text().count("\n") >= 2)
            and time.monotonic() < deadline
        ):
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    stored, total = rows_in_store(tmp_path / "scores.db"), rows_in_store(tmp_path / "whole.db")
    assert third.exists()
    assert not (third.parent / "summary.json").exists(), "the kill came too late to show anything"
    again = run_sweep("resume=true", bare=True)
    assert again.status == 0, again.output
    assert rows_in_store(tmp_path / "scores.db") == total
    mine, theirs = report_of(again), report_of(whole)
    scored_since = sum(
        point["evaluations"]["scored"]
        for point in mine["points"]
        if not _ended_before(point, third)
    )
    assert scored_since == total - stored
    assert [_without_process(point) for point in mine["points"]] == [
        _without_process(point) for point in theirs["points"]
    ]
    assert {name: mine[name] for name in ("evaluations", "best", "rule", "pareto")} == {
        name: theirs[name] for name in ("evaluations", "best", "rule", "pareto")
    }


def _ended_before(point: dict[str, Any], third: Path) -> bool:
    return bool(point["target_ratio"] > 0.26)


def _without_process(point: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on when and where it ran."""
    evaluations = {"stages": point["evaluations"]["stages"]}
    return {
        name: value
        for name, value in point.items()
        if name not in ("seconds", "mlflow_run_id", "evaluations")
    } | evaluations


def test_more_points_later(run_sweep: Sweep, tmp_path: Path) -> None:
    run_sweep("search.target_ratio=[0.1,0.3]")
    before = rows_in_store(tmp_path / "scores.db")
    outcome = run_sweep("search.target_ratio=[0.1,0.2,0.3]")
    assert outcome.status == 0, outcome.output
    report = report_of(outcome)
    assert [point["target_ratio"] for point in report["points"]] == [0.1, 0.2, 0.3]
    assert (
        report["points"][1]["evaluations"]["scored"]
        == rows_in_store(tmp_path / "scores.db") - before
    )


def test_a_damaged_point_is_searched_again(run_sweep: Sweep) -> None:
    before = report_of(run_sweep("search.target_ratio=[0.1,0.2,0.3]"))
    folder = run_sweep("resume=true", bare=True).folder
    (folder / "target_ratio_0.1/trajectory.jsonl").unlink()
    (folder / "target_ratio_0.2/summary.json").write_text("{")
    outcome = run_sweep("resume=true", bare=True)
    assert outcome.status == 0, outcome.output
    assert [point["values"] for point in report_of(outcome)["points"]] == [
        point["values"] for point in before["points"]
    ]


def test_other_settings_in_the_folder_of_a_sweep_are_refused_before_anything_is_written(
    run_sweep: Sweep,
) -> None:
    record = run_sweep("search.target_ratio=[0.1,0.2]").folder / "run.json"
    before = record.read_text()
    outcome = run_sweep("search.target_ratio=[0.1,0.2,0.3]", "search.importance=none")
    assert outcome.status == 2
    assert any("target_ratio_0.2 belongs to another run" in line for line in outcome.errors), (
        outcome.output
    )
    assert record.read_text() == before


def test_a_sweep_goes_on_from_anywhere_and_its_folder_holds_no_password(
    run_sweep: Sweep, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.tracking.tracker.FINISH_TIMEOUT_S", 0.1)
    monkeypatch.chdir(token_file.parent)
    uri = "tracking.uri='http://me:hunter2@127.0.0.1:9'"
    assert (
        run_sweep(
            "search.target_ratio=[0.1,0.2]", f"calibration.path={token_file.name}", uri
        ).status
        == 0
    )
    monkeypatch.chdir(tmp_path)
    outcome = run_sweep("resume=true", bare=True)
    assert outcome.status == 2
    assert any(
        "tracking.uri: the sweep in output_dir used http://me:***@127.0.0.1:9" in line
        for line in outcome.errors
    ), outcome.output
    assert run_sweep("resume=true", uri, bare=True).status == 0
    used = list[str]()
    monkeypatch.setattr(Tracker, "_connect", lambda self: used.append(self.uri))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    assert run_sweep("resume=true", bare=True).status == 0
    assert set(used) == {"http://me:hunter2@127.0.0.1:9"}
    assert not [
        path
        for path in outcome.folder.rglob("*")
        if path.is_file() and b"hunter2" in path.read_bytes()
    ]


def test_it_goes_on_with_its_own_files_from_anywhere(
    run_sweep: Sweep, base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store and tracking by default lie under the folder that the first command was given in, of
    the sweep and of each of its points.
    """
    words = [word for word in base if not word.startswith(("store.", "tracking."))]
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert run_sweep(*words, "search.target_ratio=[0.1,0.2]", bare=True).status == 0
    before = rows_in_store(tmp_path / "there/outputs/scores.db")
    monkeypatch.chdir(tmp_path / "here")
    more = run_sweep("resume=true", "search.target_ratio=[0.1,0.2,0.3]", bare=True)
    assert more.status == 0, more.output
    assert rows_in_store(tmp_path / "there/outputs/scores.db") > before
    assert not list((tmp_path / "here").iterdir())
    for point in report_of(more)["points"]:
        config = (more.folder / point["folder"] / "config.yaml").read_text()
        assert f"url: sqlite:///{tmp_path}/there/outputs/scores.db" in config
        assert f"uri: sqlite:///{tmp_path}/there/outputs/mlflow.db" in config
    elsewhere = run_sweep("resume=true", "store=postgresql", bare=True)
    assert any(
        "store.url: empty; put it into the environment" in line for line in elsewhere.errors
    ), "what the second command gives counts"
