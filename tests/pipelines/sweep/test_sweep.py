"""Sweeps: many searches as one experiment."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from PIL import Image

from pipelines.config.grid import as_grid, points_of
from pruning.errors import InputError
from tests.conftest import ROOT
from tests.documents import save_reader, save_tasks
from tests.pipelines.command import Outcome, without_times
from tests.pipelines.conftest import Cli
from workers.cluster.placement import Placement

TARGETS = (0.10, 0.14, 0.18, 0.22, 0.26, 0.30, 0.34)
SEVEN = f"search.target_ratio=[{','.join(map(str, TARGETS))}]"
FILES = ("trajectory.jsonl", "shape.json", "pruning_config.json", "channel_order.safetensors")


@pytest.fixture
def base(arguments: list[str]) -> list[str]:
    return [word for word in arguments if not word.startswith("search.target_ratio")]


Sweep = Callable[..., Outcome]


@pytest.fixture
def run_sweep(base: list[str], cli: Cli) -> Sweep:
    """Of the tiny model; `command="prune"` is one search with the same options."""

    def run(
        *words: str, folder: str = "sweep", bare: bool = False, command: str = "sweep"
    ) -> Outcome:
        return cli(command, *([] if bare else base), *words, folder=folder)

    return run


def report_of(outcome: Outcome) -> dict[str, Any]:
    data: dict[str, Any] = outcome.read("sweep.json")
    return data


def rows_in_store(path: Path) -> int:
    with sqlite3.connect(path) as store:
        return int(store.execute("select count(*) from scores").fetchone()[0])


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
    outcome = run_sweep("search.target_ratio=[0.2,0.9,0.3]")
    assert outcome.status == 1
    assert {point["name"]: point["status"] for point in report_of(outcome)["points"]} == {
        "target_ratio_0.2": "done", "target_ratio_0.9": "failed", "target_ratio_0.3": "done",
    }  # fmt: skip
    assert any(
        "target_ratio_0.9" in line and "no candidate left" in line for line in outcome.errors
    )
    again = run_sweep("search.target_ratio=[0.2,0.9,0.3]")
    assert again.status == 1
    assert "point 1 of 3" in again.output
    assert "point 2 of 3" not in again.output, "what is done is not done again"


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


def test_a_parent_run_and_a_run_for_each_point(run_sweep: Sweep, tmp_path: Path) -> None:
    outcome = run_sweep("search.target_ratio=[0.1,0.2,0.3]")
    report, client = report_of(outcome), MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    parent = client.get_run(report["tracking"]["run_id"])
    assert parent.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "sweep.json",
        "sweep.png",
    }
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
    run_sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "grid: empty"),
        (
            ("search.target_ratio=[0.1,7]",),
            (
                "search.target_ratio: 7; it is removed / all "
                "parameters, above 0 and below 1; did "
                "you mean 0.07? (point "
            ),
        ),
        (("search.target_ratio=[0.1,0.1]",), "has a value twice"),
        (
            ("search.target_rato=[0.1,0.2]",),
            ("search.target_rato: no such option; did you mean search.target_ratio?"),
        ),
        (
            ("grid={cluster.num_evaluators:[1,2]}",),
            ("cluster.num_evaluators cannot differ from point to point"),
        ),
        (("grid={search.target_ratio:0.1}",), "give a list of values"),
        (("search.target_ratio=[]",), "grid: search.target_ratio: []; give a list of values"),
        (
            ("search.target_ratio=[0.1,0.2]", "cluster=[inline,local]"),
            ("grid: cluster cannot differ from point to point"),
        ),
        (
            ("calibration.path=['/a/${x}.txt','/b.txt']",),
            ("grid.calibration.path[0]: Interpolation key 'x' not found"),
        ),
        (("search.target_ratio=[0.1,0.2]", "resume=true"), "no sweep in "),
        (
            ("experiment=multipruner/nope", "search.target_ratio=[0.1,0.2]"),
            ("Could not find 'experiment/multipruner/nope'"),
        ),
        (
            ("-m", "search.target_ratio=0.1,0.2"),
            (
                "-m: several values are a list here, "
                "search.target_ratio=[0.1,0.2]; "
                "--multirun is for "
                "pipelines.prune"
            ),
        ),
        (
            ("--multirun",),
            ("--multirun: several values are a list here, search.target_ratio=[0.07,0.10]"),
        ),
        (
            ("search.target_ratio=0.1,0.2",),
            (
                "search.target_ratio=0.1,0.2: several values are a "
                "list here, "
                "search.target_ratio=[0.1,0.2]"
            ),
        ),
        (("experiment=[demo,nope]",), "Could not find 'experiment/nope'"),
        (("search=[multipruner,shortgtp]", "search.target_ratio=0.1"), "shortgtp"),
        (
            ("search.target_ratio=[0.1,0.2]", "calibration.batch_size=0"),
            ("calibration.batch_size: 0; at least 1"),
        ),
    ],
)
def test_bad_grids_are_refused_before_anything_starts(
    run_sweep: Sweep, words: tuple[str, ...], message: str
) -> None:
    outcome = run_sweep(*words)
    assert outcome.status == 2, outcome.output
    assert any(message in line for line in outcome.errors), outcome.output
    assert not outcome.folder.exists()


def test_points_and_their_names() -> None:
    points = points_of(
        {
            "search": ["multipruner", "random"],
            "search.distribution": [[44, 52, 4], [1, 0, 0]],
            "calibration.path": ["/a b/c4.jsonl", None],
        }
    )
    assert len(points) == 8
    assert points[0].name == "multipruner_distribution_44-52-4_path_c4"
    assert points[1].name == "multipruner_distribution_44-52-4_path_None"
    assert points[0].overrides == [
        "search=multipruner",
        "search.distribution=[44,52,4]",
        "calibration.path='/a b/c4.jsonl'",
    ]
    assert points[1].overrides[2] == "calibration.path=null"
    assert [
        point.name
        for point in points_of({"model.path": ["meta-llama/Llama-3.1-8B", "/m/tiny.gguf"]})
    ] == ["path_Llama-3.1-8B", "path_tiny"]
    assert points_of({"calibration.path": ["C:\\it's ${a}"]})[0].overrides == [
        "calibration.path='C:\\it\\'s \\${a}'"
    ]
    alike = points_of({"calibration.path": ["/a/x.txt", "/b/x.txt"]})
    names = [point.name for point in alike]
    assert len(set(names)) == 2
    assert all(re.fullmatch("path_x_[0-9a-f]{6}", name) for name in names)
    more = points_of({"calibration.path": ["/c/x.txt", "/a/x.txt", "/b/x.txt"]})
    assert names == [point.name for point in more][1:], (
        "a longer list leaves the folders of the others alone"
    )
    with pytest.raises(InputError, match="empty"):
        points_of({})


def test_flags_stay_behind_the_grid() -> None:
    assert as_grid(["search.target_ratio=[0.1,0.2]", "export=gguf", "--cfg", "job"]) == [
        "export=gguf",
        "++grid={search.target_ratio:[0.1,0.2]}",
        "--cfg",
        "job",
    ]


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


def test_evaluators_have_the_memory_that_the_longest_sequences_take(
    run_sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    def stop(*arguments: Any) -> Any:
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
        f"python -m pipelines.sweep resume=true output_dir={outcome.folder}",
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
