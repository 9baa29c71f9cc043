"""The command, end to end."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from pipelines.runs.journal import Journal
from pruning.costs.accounting import Accounting
from pruning.export.authors_config import read_authors_config
from pruning.models.find import find_checkpoint
from pruning.shape import ModelShape, Removal
from tests.conftest import ROOT
from tests.pipelines.command import Outcome, without_times
from tests.pipelines.conftest import Cli, Search
from workers.cluster.machine import LocalMachine
from workers.evaluators import shapes as evaluator
from workers.pool.ray_pool import RayPool


def journal_of(outcome: Outcome) -> list[dict[str, Any]]:
    text = (outcome.folder / "trajectory.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_every_step_is_in_the_journal(undisturbed: Outcome, checkpoint_folder: Path) -> None:
    lines = journal_of(undisturbed)
    accounting = Accounting(find_checkpoint(str(checkpoint_folder)).config())
    shape = accounting.dense
    for number, line in enumerate(lines, start=1):
        assert line["step"] == number
        removal = Removal.from_json(line["removed"])
        best, *rest = sorted(candidate["nll"] for candidate in line["candidates"])
        assert line["nll"] == best
        assert line["perplexity"] == math.exp(best)
        assert line["margin"] == (rest[0] - best if rest else None)
        assert next(
            candidate for candidate in line["candidates"] if candidate["nll"] == best
        ) == line["removed"] | {"nll": best, "stderr": 0.0}
        assert (
            line["margin_stderr"]
            == min(
                (candidate["nll"], candidate["stderr"])
                for candidate in line["candidates"]
                if candidate["nll"] > best
            )[1]
            > 0
        )
        shape = shape.without(removal)
        assert line["num_parameters"] == accounting.num_parameters(shape)
        assert line["ratio"] == accounting.ratio(shape)
    assert [*dict.fromkeys(line["stage"] for line in lines)] == [
        "block",
        "mlp_channels",
        "attention_heads",
    ]
    assert undisturbed.summary["ratio"] == lines[-1]["ratio"] >= 0.25 > lines[-2]["ratio"]
    assert ModelShape.from_json(undisturbed.read("shape.json")) == shape


def test_the_output_folder_holds_what_is_promised(
    undisturbed: Outcome, checkpoint_folder: Path
) -> None:
    folder, summary, lines = undisturbed.folder, undisturbed.summary, journal_of(undisturbed)
    accounting = Accounting(find_checkpoint(str(checkpoint_folder)).config())
    shape = ModelShape.from_json(undisturbed.read("shape.json"))
    authors = json.loads((folder / "pruning_config.json").read_text())
    assert read_authors_config(authors, accounting.dense, channels_per_kv_head=16) == shape
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["search"]["target_ratio"] == 0.25
    assert config["model"]["path"] == str(checkpoint_folder)
    for name in ("trajectory.png", "shape.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 20
    assert (
        summary["evaluations"]["candidates"]
        == lines[-1]["evaluations"]
        == sum(len(line["candidates"]) for line in lines)
    )
    assert set(summary["perplexity"]) == {"block", "width", "heldout"}
    assert summary["perplexity"]["width"]["pruned"] == pytest.approx(lines[-1]["perplexity"])
    for text in (
        "perplexity, held-out text",
        "parameters",
        "FLOPs per token",
        "KV-cache bytes per token",
        "candidates evaluated",
        "mlflow ui --backend-store-uri",
    ):
        assert text in undisturbed.output


def test_the_end_says_what_next(ended: Outcome, search: Search) -> None:
    """What was not asked for, ready to paste."""
    again, folder = search(f"output_dir={ended.folder}"), ended.folder
    evaluate = f"to measure it: multipruner evaluate run={folder}"
    export = f"to write it as a checkpoint: multipruner export run={folder} format=transformers"
    report = f"to read of it on a page: multipruner report {folder}"
    assert again.output.splitlines()[-3:] == [evaluate, export, report]
    exported = search("export=transformers", f"output_dir={folder}")
    assert exported.status == 0, exported.output
    assert export not in exported.output
    assert {evaluate, report} <= set(exported.output.splitlines())


def test_the_same_command_again_scores_nothing(ended: Outcome, search: Search) -> None:
    first = ended
    assert first.summary["evaluations"]["scored"] > 0
    again, elsewhere = search(), search(folder="other")
    assert again.summary["evaluations"]["scored"] == 0
    assert again.trajectory == elsewhere.trajectory
    assert elsewhere.summary["evaluations"]["scored"] == 0
    assert (first.folder / "trajectory.jsonl").read_text().count("\n") == len(first.trajectory)


def test_the_table_counts_evaluations_apart_from_candidates(ended: Outcome, search: Search) -> None:
    """What came from the store is (candidate, batch) pairs, several for each candidate."""
    elsewhere = search(folder="other")
    counts = elsewhere.summary["evaluations"]
    assert counts["reused"] > counts["candidates"]
    words = " ".join(elsewhere.output.replace("│", " ").split())
    assert f"candidates evaluated {counts['candidates']} evaluations" in words
    assert f"evaluations (candidate, batch) 0 {counts['reused']} from the store" in words


def test_another_target_pays_only_for_what_is_new(search: Search) -> None:
    short, long = (
        search("search.distribution=[1,0,0]", folder="short"),
        search("search.distribution=[1,0,0]", "search.target_ratio=0.4", folder="long"),
    )
    assert long.trajectory[: len(short.trajectory)] == short.trajectory
    new = len(long.trajectory) - len(short.trajectory)
    assert 0 < long.summary["evaluations"]["scored"] <= 2 * 8 * new + 6


def test_resume_takes_the_saved_settings(ended: Outcome, search: Search) -> None:
    whole = ended
    text = (whole.folder / "trajectory.jsonl").read_text()
    lines = text.splitlines(keepends=True)
    (whole.folder / "trajectory.jsonl").write_text(
        "".join(lines[:3]) + lines[3][:40]
    )  # the last line was cut short by a crash
    resumed = search("resume=true", bare=True)
    assert resumed.status == 0, resumed.output
    assert "going on after step 3" in resumed.output
    assert (whole.folder / "trajectory.jsonl").read_text().startswith("".join(lines[:3]))
    assert resumed.trajectory == without_times(_write(whole.folder.parent / "before.jsonl", text))


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_driver_killed_and_started_again(
    tmp_path: Path, arguments: list[str], undisturbed: Outcome, search: Search
) -> None:
    """SIGKILL in the middle: the same command goes on, scores nothing that is stored, and ends with
    the same bytes.
    """
    command = [sys.executable, "-m", "pipelines.prune", *arguments, f"output_dir={tmp_path}/run"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        journal, deadline = tmp_path / "run/trajectory.jsonl", time.monotonic() + 120
        while (
            not (journal.exists() and journal.read_text().count("\n") >= 2)
            and time.monotonic() < deadline
        ):
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    with sqlite3.connect(tmp_path / "scores.db") as store:
        stored = store.execute("select count(*) from scores").fetchone()[0]
    with sqlite3.connect(undisturbed.folder.parent / "scores.db") as store:
        total = store.execute("select count(*) from scores").fetchone()[0]
    done = len(journal.read_text().splitlines())
    assert 2 <= done < len(undisturbed.trajectory), "the kill came too late to show anything"
    resumed = search()
    assert resumed.status == 0, resumed.output
    assert resumed.trajectory == undisturbed.trajectory
    assert resumed.summary["evaluations"]["scored"] == total - stored
    assert 0 < stored < total


def test_the_summary_says_that_batches_were_halved(
    undisturbed: Outcome, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Last digits may then differ, so whoever compares runs must be able to see it."""
    assert undisturbed.summary["oom_splits"] == 0
    run_prefix = evaluator.run_prefix

    def short_of_memory(dense: Any, base: Any, input_ids_BT: torch.Tensor, *known: Any) -> Any:
        if len(input_ids_BT) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_prefix(dense, base, input_ids_BT, *known)

    monkeypatch.setattr(evaluator, "run_prefix", short_of_memory)
    halved = search("store.url=sqlite:///halved.db", folder="halved")
    assert halved.status == 0, halved.output
    assert halved.summary["oom_splits"] == halved.summary["halved_tasks"] > 0
    assert "scoring them in two halves" in halved.output


def test_a_full_disk_stops_the_search_and_space_lets_it_go_on(
    undisturbed: Outcome, search: Search, tmp_path: Path, small_disk: Path
) -> None:
    """The run's folder is on it: whichever file is the first that does not fit, nothing that was
    written is lost.
    """
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (1024 * 1024 - 48 * 1024))
    stopped = search(f"output_dir={small_disk}/run", f"store.url=sqlite:///{tmp_path}/other.db")
    assert stopped.status == 1, stopped.output
    assert "No space left on device" in stopped.output
    assert "Everything computed so far is kept" in stopped.output
    assert "Traceback" not in stopped.output
    kept = (small_disk / "run/trajectory.jsonl").read_text().splitlines()
    assert len(kept) > 0
    filler.unlink()
    resumed = search(f"output_dir={small_disk}/run", f"store.url=sqlite:///{tmp_path}/other.db")
    assert resumed.status == 0, resumed.output
    assert without_times(small_disk / "run/trajectory.jsonl") == undisturbed.trajectory
    assert (small_disk / "run/trajectory.jsonl").read_text().splitlines()[: len(kept) - 1] == kept[
        :-1
    ]


@pytest.fixture
def all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search begins when every evaluator is there.

    This one is so short that it would be over before the second.
    """
    monkeypatch.setattr(RayPool, "wait", lambda self: iter([None for _ in self.describe()]))


@pytest.mark.ray
@pytest.mark.usefixtures("all_at_once")
@pytest.mark.parametrize("num_evaluators", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_evaluators_gives_the_same_bytes(
    undisturbed: Outcome,
    search: Search,
    tmp_path: Path,
    local_cluster: LocalMachine,
    num_evaluators: int,
) -> None:
    local = search(
        "cluster=local",
        f"cluster.num_evaluators={num_evaluators}",
        f"store.url=sqlite:///{tmp_path}/local.db",
        folder="local",
    )
    assert local.status == 0, local.output
    assert local.summary["num_evaluators"] == num_evaluators
    assert local.summary["evaluations"]["scored"] > 0
    assert local.trajectory == undisturbed.trajectory


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("all_at_once")
def test_an_evaluator_killed_in_the_middle_of_a_step(
    undisturbed: Outcome, search: Search, tmp_path: Path, local_cluster: LocalMachine
) -> None:
    import psutil

    def kill_one() -> None:
        journal = tmp_path / "run/trajectory.jsonl"
        while not (journal.exists() and journal.read_text().count("\n") >= 1):
            time.sleep(0.002)
        evaluators = [
            child
            for child in psutil.Process().children(recursive=True)
            if "EvaluatorActor" in " ".join(child.cmdline())
        ]
        killed.append(evaluators[0].pid)
        evaluators[0].kill()

    killed: list[int] = []
    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    outcome = search("cluster=local", "cluster.num_evaluators=2")
    killer.join(10)
    assert outcome.status == 0, outcome.output
    assert len(killed) == 1
    assert "evaluator lost" in outcome.output
    assert outcome.summary["faults"] == {"evaluator lost": 1}
    assert outcome.trajectory == undisturbed.trajectory


@pytest.mark.data
def test_the_reference_trajectory_by_the_command(search: Search, shared: Path) -> None:
    """The issue's own settings on the small real model: removals and final configuration as the
    authors' program has them.
    """
    outcome = search(
        f"model.path={shared}/models/stories260K",
        "model.dtype=float32",
        "calibration=tokens",
        f"calibration.path={shared}/golden/stories260K_calibration.safetensors",
        "calibration.num_block_samples=16",
        "calibration.num_width_samples=8",
        "calibration.sequence_length=256",
        "calibration.batch_size=2",
        "search.target_ratio=0.30",
        "search.distribution=[35,35,30]",
        "search.mlp_group_channels=43",
        "search.head_group_channels=16",
        "search.importance=l1",
        "cluster=inline",
        "store.url=sqlite:///golden.db",
        "tracking.uri=sqlite:///mlflow.db",
        bare=True,
    )
    golden = json.loads((shared / "golden/stories260K_trajectory.json").read_text())
    assert outcome.status == 0, outcome.output
    assert json.loads((outcome.folder / "pruning_config.json").read_text()) == golden["final"]
    lines = [
        json.loads(line) for line in (outcome.folder / "trajectory.jsonl").read_text().splitlines()
    ]
    for line, reference in zip(lines, golden["steps"], strict=True):
        assert line["perplexity"] == pytest.approx(reference["perplexity"], rel=1e-4)
        assert [candidate["layer"] for candidate in line["candidates"]] == [
            candidate[1] for candidate in reference["candidates"]
        ]
        expected = [candidate[-1] for candidate in reference["candidates"]]
        assert [math.exp(candidate["nll"]) for candidate in line["candidates"]] == pytest.approx(
            expected, rel=1e-4
        )


def test_it_runs_from_any_folder_as_a_module(tmp_path: Path, arguments: list[str]) -> None:
    """Without an output_dir: a dated folder under outputs/ of where the user stands."""
    command = [sys.executable, "-m", "pipelines.prune", *arguments]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [summary] = (tmp_path / "outputs").glob("*/*/summary.json")
    assert json.loads(summary.read_text())["ratio"] >= 0.25


def test_interrupted_without_an_output_dir(
    cli: Cli, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dated folder is in no command, so it is said, with the command that goes on."""
    append = Journal.append

    def interrupted(self: Journal, line: dict[str, Any]) -> None:
        append(self, line)
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", interrupted)
    stopped = cli("prune", *arguments, folder=None)
    monkeypatch.setattr(Journal, "append", append)
    assert stopped.status == 130
    [folder] = (tmp_path / "outputs").glob("*/*/")
    *_, said, command = stopped.output.strip().splitlines()
    assert said == "error: interrupted"
    assert command == (
        "  Everything computed so far is kept. To go on: multipruner prune "
        f"resume=true output_dir={folder}"
    )
    monkeypatch.chdir("/")
    assert cli("prune", *command.split()[-2:], folder=None).status == 0
    assert json.loads((folder / "summary.json").read_text())["ratio"] >= 0.25
