"""Sweeps: many searches as one experiment."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from PIL import Image

from tests.documents import save_reader, save_tasks
from tests.pipelines.command import without_times
from tests.pipelines.conftest import Cli
from tests.pipelines.sweep.conftest import SEVEN, TARGETS, Sweep, report_of, rows_in_store
from tests.tiny_search import DEAD_END
from workers.cluster.placement import Placement

FILES = ("trajectory.jsonl", "shape.json", "pruning_config.json", "channel_order.safetensors")


@pytest.mark.slow
def test_seven_targets_pay_for_their_trunk_once(run_sweep: Sweep, tmp_path: Path) -> None:
    """Must equal seven separate searches to the byte, at a fraction of their block evaluations."""
    outcome = run_sweep(SEVEN, "search.distribution=[70,20,10]")
    assert outcome.status == 0, outcome.output
    report = report_of(outcome)
    assert [point["target_ratio"] for point in report["points"]] == list(TARGETS)
    paid = sum(point["evaluations"]["scored"] for point in report["points"])
    assert paid == rows_in_store(tmp_path / "scores.db")
    separate = 0
    for target, point in zip(TARGETS, report["points"], strict=True):
        store = tmp_path / f"scores_{target}.db"
        alone = run_sweep(
            f"search.target_ratio={target}",
            "search.distribution=[70,20,10]",
            f"store.url=sqlite:///{store}",
            folder=f"alone_{target}",
            command="prune",
        )
        assert alone.status == 0, alone.output
        separate += alone.summary["evaluations"]["scored"]
        folder = outcome.folder / point["folder"]
        assert without_times(folder / "trajectory.jsonl") == alone.trajectory
        for name in FILES[1:]:
            assert (folder / name).read_bytes() == (alone.folder / name).read_bytes(), name
        mine, theirs = (
            json.loads((each / "summary.json").read_text()) for each in (folder, alone.folder)
        )
        assert mine["perplexity"] == theirs["perplexity"]
        assert mine["identity"] == theirs["identity"]
        assert point["ratio"] == theirs["ratio"]
        assert point["perplexity"] == {
            name: pair["pruned"] for name, pair in theirs["perplexity"].items()
        }
    blocks = report["evaluations"]["block"]
    assert blocks["new"] <= 0.25 * blocks["needed"]
    assert paid < separate
    with Image.open(outcome.folder / "sweep.png") as picture:
        assert min(picture.size) > 300
    run_sweep(SEVEN, "search.distribution=[70,20,10]", folder="plan", command="plan")
    planned = json.loads((tmp_path / "plan/plan.json").read_text())["evaluations"]
    for stage, counts in report["evaluations"].items():
        evaluations = counts["new"] / 2  # batches of each candidate
        assert evaluations <= planned[stage]["max"]
        assert stage != "block" or evaluations >= planned[stage]["min"], (
            "points may share more than their blocks"
        )


def test_the_longest_trunk_runs_first_and_the_table_keeps_the_order_of_the_grid(
    run_sweep: Sweep,
) -> None:
    outcome = run_sweep("search.target_ratio=[0.1,0.2,0.15]")
    started = [
        outcome.output.index(f": target_ratio_{target}") for target in ("0.2", "0.15", "0.1")
    ]
    assert started == sorted(started)
    assert [point["name"] for point in report_of(outcome)["points"]] == [
        "target_ratio_0.1",
        "target_ratio_0.2",
        "target_ratio_0.15",
    ]


def test_a_grid_over_everything(run_sweep: Sweep, token_file: Path, tmp_path: Path) -> None:
    """Strategies, orders of channels and two calibration files, on one pool: the same as alone."""
    other = tmp_path / "other.safetensors"
    other.write_bytes(_other_tokens(token_file))
    words = (
        "search.importance=[l1,activation]",
        f"calibration.path=[{token_file},{other}]",
        "search.target_ratio=0.2",
    )
    outcome = run_sweep(*words)
    assert outcome.status == 0, outcome.output
    report = report_of(outcome)
    assert [point["name"] for point in report["points"]] == [
        f"importance_{importance}_path_{name}"
        for importance in ("l1", "activation")
        for name in ("tokens", "other")
    ]
    assert outcome.output.count("ready after") <= 1, "one pool for all"
    for point in report["points"]:
        settings = [f"{name}={value}" for name, value in point["settings"].items()]
        store = f"store.url=sqlite:///{tmp_path}/{point['name']}.db"
        alone = run_sweep(
            *settings,
            "search.target_ratio=0.2",
            store,
            folder=f"alone_{point['name']}",
            command="prune",
        )
        assert (
            without_times(outcome.folder / point["folder"] / "trajectory.jsonl") == alone.trajectory
        )
    texts = {point["settings"]["calibration.path"]: set() for point in report["points"]}
    for point in report["points"]:
        if "heldout_perplexity" in point["pareto"]:
            texts[point["settings"]["calibration.path"]].add(point["name"])
    assert all(texts.values()), (
        "perplexities on different texts do not compare, so each has a front of its own"
    )
    orders = {
        (outcome.folder / point["folder"] / "channel_order.safetensors").read_bytes()
        for point in report["points"]
    }
    assert len(orders) == 3, "l1 does not depend on the text, activation does"


def _other_tokens(path: Path) -> bytes:
    from safetensors.numpy import load, save

    return bytes(save({"input_ids": load(path.read_bytes())["input_ids"][::-1].copy()}))


def test_strategies_are_files_of_a_group(run_sweep: Sweep) -> None:
    outcome = run_sweep(
        "search=[blockpruner,shortgpt,random]",
        "search.distribution=[1,0,0]",
        "search.target_ratio=[0.1,0.3]",
    )
    assert outcome.status == 0, outcome.output
    names = [point["name"] for point in report_of(outcome)["points"]]
    assert names == [
        f"{strategy}_target_ratio_{target}"
        for strategy in ("blockpruner", "shortgpt", "random")
        for target in ("0.1", "0.3")
    ]


def test_what_an_allocation_measured_is_counted(run_sweep: Sweep) -> None:
    """Two batches of each shape, under the stage that the plan has them in."""
    outcome = run_sweep(
        "search=allocation",
        "search.distribution=[0,1,1]",
        "search.mlp_group_channels=8",
        "search.target_ratio=[0.1,0.12]",
    )
    assert outcome.status == 0, outcome.output
    for point in report_of(outcome)["points"]:
        summary = json.loads((outcome.folder / point["folder"] / "summary.json").read_text())
        measured = summary["allocation"]["evaluations"]
        assert measured > 20
        assert point["evaluations"]["stages"]["block"]["needed"] == 2 * measured
        assert 0 < point["evaluations"]["stages"]["block"]["new"] <= 2 * measured


def test_best_and_front(run_sweep: Sweep) -> None:
    report = report_of(run_sweep(SEVEN, "max_perplexity_ratio=100"))
    points = {point["name"]: point for point in report["points"]}
    value = {
        name: (point["ratio"], point["perplexity"]["heldout"]) for name, point in points.items()
    }
    for name, (ratio, perplexity) in value.items():
        beaten = any(
            other[0] >= ratio and other[1] <= perplexity and other != (ratio, perplexity)
            for other in value.values()
        )
        assert ("heldout_perplexity" in points[name]["pareto"]) == (not beaten)
    assert report["best"] == max(value, key=lambda name: (value[name][0], -value[name][1]))
    assert [point["name"] for point in report["points"] if point["best"]] == [report["best"]]
    strict = report_of(run_sweep(SEVEN, "max_perplexity_ratio=1"))
    dense = strict["points"][0]["dense"]["heldout_perplexity"]
    assert (strict["best"] is None) == all(perplexity > dense for _, perplexity in value.values())


def test_a_point_that_fails_does_not_stop_the_others(run_sweep: Sweep) -> None:
    _, halves = DEAD_END
    words = (halves, "search.target_ratio=[0.2,0.53,0.3]")
    outcome = run_sweep(*words)
    assert outcome.status == 1
    assert {point["name"]: point["status"] for point in report_of(outcome)["points"]} == {
        "target_ratio_0.2": "done",
        "target_ratio_0.53": "failed",
        "target_ratio_0.3": "done",
    }
    assert any(
        "target_ratio_0.53" in line and "no candidate left" in line for line in outcome.errors
    )
    again = run_sweep(*words)
    assert again.status == 1
    assert "point 1 of 3" in again.output
    assert "point 2 of 3" not in again.output, "what is done is not done again"


def test_a_parent_run_and_a_run_for_each_point(run_sweep: Sweep, tmp_path: Path) -> None:
    outcome = run_sweep("search.target_ratio=[0.1,0.2,0.3]")
    report, client = report_of(outcome), MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    parent = client.get_run(report["tracking"]["run_id"])
    assert parent.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "sweep.json",
        "sweep.png",
    }
    note = parent.data.tags["mlflow.note.content"]
    assert "**3 points**; best: target\\_ratio\\_0.3" in note
    assert "'grid={search.target_ratio:[0.1,0.2,0.3]}'" in note
    assert "tracking.uri" not in note
    history = client.get_metric_history(parent.info.run_id, "sweep/ratio")
    assert sorted({(point.step, point.value) for point in history}) == [
        (index, row["ratio"]) for index, row in enumerate(report["points"])
    ]
    for row in report["points"]:
        child = client.get_run(row["mlflow_run_id"])
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.metrics["result/ratio"] == row["ratio"]
        assert child.info.experiment_id == parent.info.experiment_id


def test_points_are_evaluated_and_exported_once(
    run_sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[Path]
) -> None:
    model, data = save_reader(tmp_path / "reader"), save_tasks(tmp_path / "data", 4)
    words = (
        f"model.path={model}",
        f"evaluation.data_dir={data}",
        "evaluation=zero_shot",
        "evaluation.tasks=[piqa]",
        "evaluation.cost=false",
    )
    words += ("search.target_ratio=[0.1,0.3]", "export=transformers", "evaluation.batch_size=1")
    outcome = run_sweep(*words)
    assert outcome.status == 0, outcome.output
    assert len(hashed) == 1, "all points share one model, and what follows them gets it"
    reports = [
        json.loads((outcome.folder / f"target_ratio_{target}/evaluation.json").read_text())
        for target in ("0.1", "0.3")
    ]
    assert reports[0]["dense"] == reports[1]["dense"]
    assert all(
        (outcome.folder / f"target_ratio_{target}/transformers/config.json").is_file()
        for target in ("0.1", "0.3")
    )
    monkeypatch.setattr(
        "pipelines.prune.pipeline.evaluate_run", lambda *_: pytest.fail("it is there already")
    )
    monkeypatch.setattr(
        "pipelines.prune.pipeline.export_run", lambda *_: pytest.fail("it is there already")
    )
    assert run_sweep(*words).status == 0


def test_evaluators_have_the_memory_that_the_longest_sequences_take(
    run_sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    def stop(*arguments: Any, run: str) -> Any:
        opened.append(arguments)
        raise KeyboardInterrupt

    needed: dict[int, Any] = {}

    def place(_cluster: Any, _machine: Any, evaluator_bytes: int) -> Any:
        return needed.setdefault(evaluator_bytes, Placement(1, 0, memory_bytes=evaluator_bytes))

    monkeypatch.setattr("pipelines.prune.job.find_placement", place)
    monkeypatch.setattr("pipelines.sweep.sweep_run.local_session", lambda *_: nullcontext())
    monkeypatch.setattr("pipelines.sweep.sweep_run.open_pool", stop)
    outcome = run_sweep("search.target_ratio=0.2", "calibration.sequence_length=[8,32,16]")
    assert (outcome.status, outcome.output.splitlines()[-1].split(": ")[-1]) == (
        130,
        f"multipruner sweep resume=true output_dir={outcome.folder}",
    )
    [(_, _, placement, spec)] = opened
    assert len(needed) == 3
    assert placement.memory_bytes == max(needed)
    assert max(ids.shape[1] for ids in spec.token_sets.values()) == 32


def test_hydras_own_multirun_shares_the_store(cli: Cli, base: list[str], tmp_path: Path) -> None:
    outcome = cli(
        "prune",
        "--multirun",
        *base,
        "search.target_ratio=0.3,0.1",
        f"output_dir={tmp_path}/multi/${{search.target_ratio}}",
        f"hydra.sweep.dir={tmp_path}/multirun",
    )
    assert outcome.status == 0, outcome.output
    first, second = (
        json.loads((tmp_path / "multi" / target / "summary.json").read_text())
        for target in ("0.3", "0.1")
    )
    assert first["evaluations"]["scored"] > 0
    assert second["evaluations"]["reused"] > 0
    assert second["evaluations"]["scored"] < first["evaluations"]["scored"]
