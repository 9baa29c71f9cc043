"""Folders that version 0.1.0 wrote are resumed, evaluated, exported, reported and watched."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.status.command import main as status
from pruning.export.manifest import check_folder
from tests.conftest import ROOT
from tests.pipelines.conftest import Cli, Search
from tests.seeded_model import save_seeded, save_tokens
from workers.evaluators import shapes as evaluator

EARLIER = ROOT / "tests/data/run_of_0_1_0"

Earlier = Callable[[str], Path]

_TIMES = ("seconds", "timestamp")
_MEASURED = ("nll", "perplexity", "margin", "margin_stderr")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An MLflow that has a run under way, and the run's id."""
    folder = tmp_path_factory.mktemp("mlflow")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    artifacts = (folder / "mlartifacts").as_uri()
    experiment = client.create_experiment("multipruner", artifact_location=artifacts)
    return folder / "mlflow.db", client.create_run(experiment).info.run_id


@pytest.fixture
def earlier(tmp_path: Path, tracked: tuple[Path, str]) -> Earlier:
    """`earlier("stopped")` puts that folder where it says that it is, with all that it needs."""
    database, run_id = tracked

    def put(state: str) -> Path:
        place = tmp_path / state
        save_seeded(place / "seeded-llama")
        save_tokens(place / "tokens.safetensors")
        shutil.copyfile(database, place / "mlflow.db")
        shutil.copytree(EARLIER / state, place / "run")
        for path in place.glob("run/*"):
            if path.suffix != ".safetensors":
                text = path.read_text().replace("@PLACE@", str(place))
                path.write_text(text.replace("@MLFLOW_RUN@", run_id))
        if (place / "run/scores.sql").exists():
            with sqlite3.connect(place / "scores.db") as store:
                store.executescript((place / "run/scores.sql").read_text())
            (place / "run/scores.sql").unlink()
        return place / "run"

    return put


def test_a_search_that_was_killed_goes_on(
    earlier: Earlier, search: Search, tracked: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removals as 0.1.0 made them; numbers to 1e-6, since other processors round otherwise."""
    anew = "the channel order is read, not found anew"
    monkeypatch.setattr(evaluator, "channel_order", lambda *_: pytest.fail(anew))
    folder = earlier("stopped")
    before, scores = (folder / "trajectory.jsonl").read_bytes(), stored_scores(folder)
    outcome = search("resume=true", f"output_dir={folder}", "cluster=inline", bare=True)
    assert outcome.status == 0, outcome.output
    assert "going on after step 4, ratio 25.95 %" in outcome.output
    assert (folder / "trajectory.jsonl").read_bytes().startswith(before)
    lines, references = read_lines(folder), read_lines(EARLIER / "ended")
    for line, reference in zip(lines, references, strict=True):
        assert decided(line, reference) == decided(reference, reference)
        assert measured(line) == pytest.approx(measured(reference), rel=1e-6, abs=2e-6)
    for name in ("shape.json", "pruning_config.json"):
        assert (folder / name).read_bytes() == (EARLIER / "ended" / name).read_bytes()
    assert_same_result(folder)
    assert scores <= stored_scores(folder)
    run = MlflowClient(f"sqlite:///{folder.parent}/mlflow.db").get_run(tracked[1])
    assert (run.info.status, run.data.metrics["prune/ratio"]) == ("FINISHED", lines[-1]["ratio"])


def test_a_search_that_has_ended_has_nothing_left_to_do(earlier: Earlier, search: Search) -> None:
    folder = earlier("ended")
    outcome = search("resume=true", f"output_dir={folder}", "cluster=inline", bare=True)
    assert outcome.status == 0, outcome.output
    for name in (
        "trajectory.jsonl",
        "channel_order.safetensors",
        "shape.json",
        "pruning_config.json",
    ):
        assert (folder / name).read_bytes() == (EARLIER / "ended" / name).read_bytes()
    assert_same_result(folder)


def test_it_is_exported(earlier: Earlier, cli: Cli) -> None:
    folder = earlier("ended")
    outcome = cli("export", f"run={folder}", "format=transformers", folder=None)
    assert outcome.status == 0, outcome.output
    assert "verified; README.md there says how to open it" in outcome.output
    manifest, lines = check_folder(folder / "transformers"), read_lines(EARLIER / "ended")
    names = ("evaluation.json", "summary.json", "run.json")
    evaluation, summary, record = (read(EARLIER / "ended" / name) for name in names)
    assert manifest["shape"] == lines[-1]["shape"]
    assert [step["ratio"] for step in manifest["trajectory"]] == [line["ratio"] for line in lines]
    assert manifest["perplexity"] == summary["perplexity"]
    assert manifest["evaluation"]["cost"] == evaluation["cost"]
    assert manifest["channel_order"] == evaluation["fingerprints"]["channel_order"]
    assert manifest["model"]["fingerprint"] == record["identity"]["model"]


@pytest.mark.parametrize("state", ["stopped", "ended"])
def test_it_is_evaluated(earlier: Earlier, cli: Cli, state: str) -> None:
    folder = earlier(state)
    cost = ["evaluation=none", "evaluation.cost=true", "evaluation.cost_prompt_tokens=4"]
    rounds = ["evaluation.cost_new_tokens=2", "evaluation.cost_rounds=1"]
    words = (f"run={folder}", *cost, *rounds, "cluster=inline")
    outcome = cli("evaluate", *words, folder=None)
    assert outcome.status == 0, outcome.output
    found, last = read(folder / "evaluation.json"), read_lines(EARLIER / state)[-1]
    assert (found["shape"], found["ratio"]) == (last["shape"], last["ratio"])
    if state == "ended":
        stored = read(EARLIER / "ended/summary.json")["num_stored_parameters"]["pruned"]
        assert found["cost"]["pruned"]["num_parameters"] == stored


def test_both_are_reported(earlier: Earlier, cli: Cli) -> None:
    folders = [earlier("stopped"), earlier("ended")]
    outcome = cli("report", *folders, "log_to_mlflow=false")
    assert outcome.status == 0, outcome.output
    page = (outcome.folder / "report.html").read_text()
    for words in (
        "has not ended: 25.95% of 40.00% removed after 4 steps",
        "one path: A is a prefix of B; A has not ended, and is at 25.95%",
        "seeded-llama",
        "24.19",  # held-out perplexity of the pruned model
    ):
        assert words in page


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            "stopped",
            ("interrupted", "2 (block): ratio 22.89% of 40.00%", "54 scored, 0 from the store"),
        ),
        ("ended", ("finished: target reached", "14 (attention_heads): ratio 41.21% of 40.00%")),
    ],
)
def test_its_status_is_shown(
    earlier: Earlier,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: str,
    words: tuple[str, ...],
) -> None:
    monkeypatch.setattr(sys, "argv", ["status", str(earlier(state))])
    status()
    output = " ".join(capsys.readouterr().out.split())
    assert all(part in output for part in words), output


def assert_same_result(folder: Path) -> None:
    """Of a summary, everything that 0.1.0 said of the search itself. There may be more by now."""
    summary, reference = read(folder / "summary.json"), read(EARLIER / "ended/summary.json")
    assert reference.keys() <= summary.keys()
    assert reference["identity"].items() <= summary["identity"].items()
    names = ("status", "model", "strategy", "target_ratio", "ratio", "steps", "shape", "dtype")
    costs = (
        "num_parameters",
        "num_stored_parameters",
        "flops_per_token",
        "kv_cache_bytes_per_token",
    )
    for name in (*names, *costs, "calibration", "context_length"):
        assert summary[name] == reference[name], name
    assert summary["perplexity"].keys() == reference["perplexity"].keys()
    for name, pair in reference["perplexity"].items():
        assert summary["perplexity"][name] == pytest.approx(pair, rel=1e-6)


def decided(line: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """What a step did, in the fields that its reference has."""
    fields = {name: line[name] for name in reference if name not in (*_TIMES, *_MEASURED)}
    names = ("kind", "layer", "kv_heads", "mlp_channels")
    candidates = [
        {name: each[name] for name in names if name in each} for each in line["candidates"]
    ]
    return fields | {"candidates": candidates}


def measured(line: dict[str, Any]) -> list[float]:
    scores = [candidate[name] for candidate in line["candidates"] for name in ("nll", "stderr")]
    return [*(line[name] for name in _MEASURED), *scores]


def stored_scores(folder: Path) -> set[tuple[str, ...]]:
    """NLL by context, shape and batch of the store of a run."""
    with sqlite3.connect(folder.parent / "scores.db") as store:
        return set(store.execute("select context, shape, batch, nll, num_tokens from scores"))


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trajectory.jsonl").read_text().splitlines()]


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
