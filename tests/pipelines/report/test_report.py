"""The page: what it shows of folders by hand, and of real searches of a tiny model."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.report.analysis import (
    divergence,
)
from pipelines.report.folders import read_runs
from pipelines.tracking.tracker import Tracker
from pruning.errors import InputError
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli, Search
from tests.pipelines.report.reports import (
    A1,
    A2,
    M3,
    WIDTH,
    an_evaluation,
    figures,
    write_run,
)

Command = Callable[..., Outcome]


@pytest.fixture
def command(cli: Cli) -> Command:
    return partial(cli, "report")


def test_the_page_says_what_it_should(command: Command, tmp_path: Path) -> None:
    changes = {
        "evaluation": an_evaluation(0.25, 25.0, 0.5),
        "settings": {"search.importance": "l1"},
    }
    paths = [
        write_run(tmp_path / "one", [A1, M3, WIDTH]),
        write_run(tmp_path / "two", [A2, M3], **changes),
    ]  # type: ignore[arg-type]
    paths.append(write_run(tmp_path / "three", [A1], ended=False))
    outcome = command(*paths, "log_to_mlflow=false")
    assert outcome.status == 0, outcome.output
    text = html.unescape(
        re.sub(
            r"<script.*?</script>|<style.*?</style>|<[^>]+>",
            " ",
            (outcome.folder / "report.html").read_text(),
            flags=re.DOTALL,
        )
    )
    text = " ".join(text.split())
    for words in (
        "3 searches compared",
        "C has not ended: shown as far as it came",
        "near-tie: the difference is 0.5 standard errors in A, 1.0 standard errors in B",
        "one path: C is a prefix of A",
        "2 of 3",
        "attention block of layer 1",
        "MLP of layer 0 to 6 channels",
        "search.importance activation l1 activation",
        "1 x worker died",
        "1 min 15 s",
        "0.6100 0.0100 0.5000 0.0110 -0.1100",
        "wikitext2 token perplexity 20.00 - 25.00 - +25.0%",
        "average acc_norm, else acc 0.6000",
        "0 of 3 blocks that any run removed were removed by all 3 runs",
    ):
        assert words in text, words
    check_figures(figures(outcome.folder / "report.html"))


def check_figures(shown: dict[str, dict[str, Any]]) -> None:
    """Of the three runs above."""
    names = ["trajectory-block", "trajectory-width", "fragility", "votes-0", "overlap-0"]
    names += [f"{name}-{run}" for name in ("margin", "left") for run in "ABC"]
    assert set(shown) == {*names, "front", "front-0", "front-1", "accuracy"}
    blocks = shown["trajectory-block"]["data"]
    assert [trace["name"] for trace in blocks] == ["A one", "B two", "C three"]
    assert blocks[0]["x"] == pytest.approx([0, 5, 25])
    assert blocks[0]["y"] == pytest.approx([9.0, math.exp(2.0), math.exp(2.4)])
    assert blocks[2]["y"] == pytest.approx([9.0, math.exp(2.0)])
    assert (
        len(
            {
                (trace["line"]["color"], trace["line"]["dash"], trace["marker"]["symbol"][-1])
                for trace in blocks
            }
        )
        == 3
    )
    attention, mlp = shown["left-A"]["data"]
    assert (len(attention["z"]), len(attention["z"][0])) == (4, 4)
    assert attention["z"][1] == [100, 0, 0, 0]
    assert mlp["z"][0] == [100, 100, 100, 75]
    by_name = {trace["name"]: trace for trace in shown["margin-A"]["data"]}
    assert by_name["near-tie"]["x"] == [1, 3]
    assert by_name["near-tie"]["error_y"]["array"] == pytest.approx([0.4, 0.04])
    assert by_name["clear"]["y"] == pytest.approx([0.5])


def test_the_page_stands_alone_and_is_the_same_again(command: Command, tmp_path: Path) -> None:
    path = write_run(tmp_path / "one", [A1])
    page = command(path, "log_to_mlflow=false").folder / "report.html"
    first = page.read_bytes()
    assert command(f"runs=[{path}]", "log_to_mlflow=false").status == 0
    assert page.read_bytes() == first
    scripts = re.findall(r"<script>(.*?)</script>", first.decode(), re.DOTALL)
    allowed = re.findall(r"'sha256-([^']+)'", first.decode().split("<title>", maxsplit=1)[0])
    assert allowed == [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    ]
    assert len(scripts) == 2
    links = re.findall(
        r"(?:src|href)=(\S+)", re.sub(r"<script>.*?</script>", "", first.decode(), flags=re.DOTALL)
    )
    assert all(link.startswith(('"#', '"data:')) for link in links), links


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "a'b\"c & <b>d",
        "with space, comma",
        "$(x)${oc.env:HOME}",
        "back\\slash",
        "[1]",
        "ünï",
    ],
)
def test_names_are_only_text(command: Command, tmp_path: Path, name: str) -> None:
    parts = name.split("/")
    outcome = command(
        write_run(tmp_path.joinpath(*parts), [A1]),
        write_run(tmp_path / "other", [A2]),
        "log_to_mlflow=false",
    )
    assert outcome.status == 0, outcome.output
    page = (outcome.folder / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<b>d" not in page
    assert html.escape(parts[-1], quote=False) in page.replace("&#39;", "'").replace("&#34;", '"')
    assert (
        figures(outcome.folder / "report.html")["trajectory-block"]["data"][0]["name"]
        == f"A {html.escape(parts[-1])}"
    )


def test_every_problem_at_once_and_nothing_is_written(command: Command, tmp_path: Path) -> None:
    good = write_run(tmp_path / "good", [A1])
    damaged = {}
    for name, file, text in (
        ("line", "trajectory.jsonl", '{"step": 1}\n'),
        ("json", "run.json", "{"),
        ("summary", "summary.json", ('{"status": "x"}')),
        ("evaluation", "evaluation.json", "[]"),
        (
            "shape",
            "trajectory.jsonl",
            (good / "trajectory.jsonl").read_text().replace("2x8", "2y8"),
        ),
    ):
        damaged[name] = write_run(tmp_path / name, [A1]) / file
        damaged[name].write_text(text)
    empty, new = tmp_path / "empty", write_run(tmp_path / "new", [A1])
    empty.mkdir()
    (new / "trajectory.jsonl").write_text("")
    outcome = command(
        good, tmp_path / "nowhere", good, empty, new, *(path.parent for path in damaged.values())
    )
    assert outcome.status == 2
    assert outcome.errors == [line for line in outcome.errors if line.startswith("error: runs: ")]
    said = "\n".join(outcome.errors)
    for words in (
        "no such folder",
        "good is there twice",
        "empty has no run.json, config.yaml, trajectory.jsonl",
        "new has not taken a step yet",
    ):
        assert words in said, said
    for path in damaged.values():
        assert f"runs: {path} is damaged: " in said, said
    assert len(outcome.errors) == 4 + len(damaged)
    assert not outcome.folder.exists()


def test_words_of_the_command(command: Command, tmp_path: Path) -> None:
    path = write_run(tmp_path / "a=b", [A1])
    assert command(f"runs=['{path}']", "log_to_mlflow=false").status == 0
    assert "runs: given twice" in command("x", "runs=[y]").output
    assert "runs: missing; give the output_dir of one search or more" in command().output
    assert "no such option; did you mean runs?" in command("run=[x]").output


def test_a_sweep_stands_for_its_points(command: Command, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    points = [write_run(sweep / "p1", [A1]), write_run(tmp_path / "elsewhere", [A2])]
    (sweep / "p3").mkdir()
    rows = [("first", "p1"), ("second", str(points[1])), ("third", "p3"), ("fourth", None)]
    (sweep / "sweep.json").write_text(
        json.dumps(
            {
                "points": [
                    {"name": name, "folder": folder, "status": "done"} for name, folder in rows
                ]
            }
        )
    )
    assert [(run.key, run.name) for run in read_runs([str(sweep)])] == [
        ("A", "sweep/first"),
        ("B", "sweep/second"),
    ]
    assert "elsewhere is there twice" in command(sweep, points[1]).output
    shutil.rmtree(sweep / "p1")
    shutil.rmtree(points[1])
    assert "no point of the sweep" in command(sweep).output
    (sweep / "sweep.json").write_text("{}")
    assert "sweep.json is damaged" in command(sweep).output


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / parent / "run", [A1]) for parent in ("x", "y")] + [
        write_run(tmp_path / "z", [A1])
    ]
    assert [run.name for run in read_runs([str(path) for path in paths])] == ["x/run", "y/run", "z"]


def test_real_searches_without_their_model(
    search: Search, command: Command, tmp_path: Path, checkpoint_folder: Path
) -> None:
    """Three calibration sets, two distributions, and a search that was stopped; then the model goes
    away.
    """
    model = tmp_path / "model"
    shutil.copytree(checkpoint_folder, model)
    given = f"model.path={model}"
    one, more = (
        search(given, folder="one"),
        search(given, "search.distribution=[1,0,0]", "search.target_ratio=0.2", folder="more"),
    )
    other = search(given, "calibration.num_block_samples=3", folder="other")
    stopped = search(
        given, "calibration.num_block_samples=5", "search.distribution=[1,0,0]", folder="stopped"
    )
    shutil.rmtree(model)
    for name in ("summary.json", "shape.json", "channel_order.safetensors"):
        (stopped.folder / name).unlink()
    path = stopped.folder / "trajectory.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]) + '{"step": 3, "sta')
    assert [outcome.status for outcome in (one, more, other, stopped)] == [0, 0, 0, 0]
    outcome = command(one.folder, more.folder, other.folder, stopped.folder)
    assert outcome.status == 0, outcome.output
    shown = figures(outcome.folder / "report.html")
    lines = [json.loads(line) for line in one.trajectory]
    blocks = shown["trajectory-block"]["data"]
    assert blocks[0]["y"] == pytest.approx(
        [
            one.summary["perplexity"]["block"]["dense"],
            *(line["perplexity"] for line in lines if line["stage"] == "block"),
        ]
    )
    assert [len(trace["x"]) for trace in blocks][3] == 2
    widths = shown["trajectory-width"]["data"][0]
    assert widths["x"] == pytest.approx(
        [0, *(100 * line["ratio"] for line in lines if line["stage"] != "block")]
    )
    runs = read_runs([str(each.folder) for each in (one, more, other, stopped)])
    assert divergence(runs[0], runs[1]).kind in ("stage", "prefix"), (
        "the same calibration: one trunk"
    )
    assert all(step.near_tie is not None for step in runs[0].steps if len(step.scores) > 1)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for run in runs:
        assert run.mlflow_run_id is not None
        assert "report.html" in {entry.path for entry in client.list_artifacts(run.mlflow_run_id)}
        assert client.get_run(run.mlflow_run_id).info.status == "FINISHED"


def test_mlflow_that_is_away_costs_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that is gone is not made again; a server that is away is asked once."""
    finish = Tracker.finish
    monkeypatch.setattr(
        Tracker, "finish", lambda self, **options: finish(self, **(options | {"timeout_s": 0.5}))
    )
    paths = [
        write_run(
            tmp_path / "gone", [A1], settings={"tracking.uri": f"sqlite:///{tmp_path}/gone.db"}
        ),
        write_run(tmp_path / "secret", [A1], settings={"tracking.uri": "https://me:***@host"}),
        *(
            write_run(tmp_path / name, [A1], settings={"tracking.uri": "http://127.0.0.1:9"})
            for name in ("away", "too")
        ),
    ]
    outcome = command(*paths)
    assert outcome.status == 0, outcome.output
    output = " ".join(outcome.output.split())
    assert "run A: the page is not in MLflow: its database is not there any more" in output
    assert "run B: the page is not in MLflow: the password of its server is not saved" in output
    assert output.count("did not take everything") == 1
    assert not (tmp_path / "gone.db").exists()
    assert (outcome.folder / "report.html").is_file()


def test_a_run_that_mlflow_has_no_more_costs_the_others_nothing(
    command: Command, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    kept = client.create_run(client.create_experiment("e", f"{tmp_path}/artifacts")).info.run_id
    paths = []
    for name, run_id in (("purged", "0" * 32), ("kept", kept)):
        path = write_run(tmp_path / name, [A1], settings={"tracking.uri": uri})
        record = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps(record | {"mlflow_run_id": run_id}))
        paths.append(path)
    outcome = command(*paths)
    assert outcome.status == 0, outcome.output
    assert outcome.output.count("refuses for good") == 1
    assert [entry.path for entry in client.list_artifacts(kept)] == ["report.html"]


def test_a_damaged_allocation_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", [A1])
    (folder / "allocation.json").write_text("[]")
    with pytest.raises(InputError, match=f"runs: {folder}/allocation.json is damaged"):
        read_runs([str(folder)])


def test_damage_names_one_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", [A1])
    (folder / "config.yaml").write_text("model: [")
    with pytest.raises(InputError, match=f"runs: {folder}/config.yaml is damaged"):
        read_runs([str(folder)])


def test_every_run_is_on_the_page(command: Command, tmp_path: Path) -> None:
    """In the tables, and with charts and traces of its own, however many there are."""
    names = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh"]
    paths = [
        write_run(
            tmp_path / name,
            [A1, M3, WIDTH],
            evaluation=an_evaluation(0.25, 25.0, 0.5 + 0.01 * index),
        )
        for index, name in enumerate(names)
    ]
    outcome = command(*paths, "log_to_mlflow=false")
    assert outcome.status == 0, outcome.output
    page = outcome.folder / "report.html"
    shown, keys = figures(page), "ABCDEFG"
    labels = [f"{key} {name}" for key, name in zip(keys, names, strict=True)]
    for chart in ("trajectory-block", "trajectory-width", "fragility"):
        assert [trace["name"] for trace in shown[chart]["data"]] == labels, chart
    for key in keys:
        assert {f"margin-{key}", f"left-{key}"} <= set(shown)
    front = [trace["name"] for trace in shown["front"]["data"]]
    assert set(labels) <= set(front)
    accuracies = {trace["name"] for trace in shown["accuracy"]["data"]}
    assert {f"{label}, pruned" for label in labels} <= accuracies
    assert shown["overlap-0"]["data"][0]["x"] == list(keys)
    text = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)
    assert text.count("<section") == 1
    for section in text.split('<details class="fold"')[1:]:
        title = re.search(r"<h2[^>]*>(.*?)</h2>", section)
        assert title
        missing = [key for key in keys if not re.search(rf">\s*{key}\s*<|\b{key}\b", section)]
        assert not missing, (title[1], missing)
