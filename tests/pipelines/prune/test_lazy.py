"""A lazy search by the command: what it writes, the same bytes however it came about, and where it
is refused.
"""

from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.pipelines.command import Outcome, searched, without_times
from tests.pipelines.conftest import Cli, Search
from tests.tiny_search import LAZY as LAZY_SELECTION
from tests.tiny_search import LONG, tiny_search
from workers.cluster.machine import LocalMachine
from workers.pool.ray_pool import RayPool

LAZY = (*LONG, *LAZY_SELECTION)


@pytest.fixture(scope="module")
def lazily(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_folder: Path, token_file: Path
) -> Outcome:
    """What `search(*LAZY)` gives. For reading."""
    folder = tmp_path_factory.mktemp("lazily")
    return searched(folder, *tiny_search(checkpoint_folder, token_file, *LAZY))


@pytest.fixture(scope="module")
def exact(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_folder: Path, token_file: Path
) -> Outcome:
    """The same with every candidate scored."""
    folder = tmp_path_factory.mktemp("exact")
    return searched(folder, *tiny_search(checkpoint_folder, token_file, *LONG))


def lines_of(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in outcome.trajectory]


def test_what_was_left_out_is_written_everywhere(lazily: Outcome, cli: Cli, exact: Outcome) -> None:
    lines, summary = lines_of(lazily), lazily.summary
    unscored = sum(len(line["unscored"]) for line in lines)
    scored = sum(len(line["candidates"]) for line in lines)
    assert unscored > 10
    taken = summary["evaluations"]
    assert (taken["candidates"], taken["unscored"]) == (scored, unscored)
    assert scored < exact.summary["evaluations"]["candidates"]
    assert f"{scored:,} of {scored + unscored:,}" in lazily.output
    assert "among those scored" in lazily.output
    last = lines[-1]
    shown = cli("status", lazily.folder, folder=None).output
    known, left_out = len(last["candidates"]), len(last["unscored"])
    assert f"{known} of {known + left_out} candidates scored" in " ".join(shown.split())
    identity = json.loads((lazily.folder / "run.json").read_text())["identity"]
    assert identity["search.selection"] == "lazy"
    assert identity["search.lazy.rescore_every"] == 20
    assert summary["strategy"] == "40:40:20 lazy"
    assert summary["plan"]["evaluations"]["block"]["min"] <= scored


def test_a_search_that_scores_all_says_nothing_of_it(exact: Outcome) -> None:
    """As in folders from before there was a choice."""
    saved = yaml.safe_load((exact.folder / "config.yaml").read_text())
    assert not {"selection", "lazy"} & set(saved["search"])
    for name in ("trajectory.jsonl", "summary.json", "status.json", "run.json"):
        assert not re.search("lazy|selection|unscored", (exact.folder / name).read_text())


def test_scored_again_at_every_step_it_is_the_exhaustive_search(
    search: Search, exact: Outcome
) -> None:
    found = search(*LONG, "search.selection=lazy", "search.lazy.rescore_every=1")
    assert found.status == 0, found.output
    lines = lines_of(found)
    assert all(line.pop("unscored") == [] for line in lines)
    assert [line.pop("base_nll", None) is not None for line in lines].count(True) == 3
    assert lines == lines_of(exact)
    assert (found.folder / "shape.json").read_bytes() == (exact.folder / "shape.json").read_bytes()


@pytest.mark.parametrize("store", ["mine.db", "another.db"])
@pytest.mark.parametrize("num_lines", [1, 6])
def test_a_search_that_was_cut_short_goes_on_to_the_same_bytes(
    lazily: Outcome, search: Search, tmp_path: Path, num_lines: int, store: str
) -> None:
    """Whether the scores of the step at which it was are in the store or not."""
    first = search(*LAZY, f"store.url=sqlite:///{tmp_path}/mine.db")
    path = first.folder / "trajectory.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:num_lines]) + lines[num_lines][:40])
    (first.folder / "summary.json").unlink()
    resumed = search("resume=true", f"store.url=sqlite:///{tmp_path}/{store}", bare=True)
    assert resumed.status == 0, resumed.output
    assert f"going on after step {num_lines}" in resumed.output
    assert resumed.trajectory == lazily.trajectory
    counts = resumed.summary["evaluations"]
    assert counts["unscored"] == lazily.summary["evaluations"]["unscored"]
    assert (counts["scored"] == 0) == (store == "mine.db")


@pytest.mark.slow
def test_a_lazy_driver_that_is_killed(
    tmp_path: Path, arguments: list[str], lazily: Outcome, search: Search
) -> None:
    command = [sys.executable, "-m", "pipelines.prune", *arguments, *LAZY]
    process = subprocess.Popen(
        [*command, f"output_dir={tmp_path}/run"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    journal, deadline = tmp_path / "run/trajectory.jsonl", time.monotonic() + 120
    try:
        while not (journal.exists() and journal.read_text().count("\n") >= 2):
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(without_times(journal)) < len(lazily.trajectory), "the kill came too late"
    assert search(*LAZY).trajectory == lazily.trajectory


@pytest.mark.ray
@pytest.mark.parametrize("num_evaluators", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_evaluators_takes_the_same_path(
    lazily: Outcome,
    search: Search,
    local_cluster: LocalMachine,
    num_evaluators: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RayPool, "wait", lambda self: iter([None for _ in self.describe()]))
    found = search(*LAZY, "cluster=local", f"cluster.num_evaluators={num_evaluators}")
    assert found.status == 0, found.output
    assert found.summary["num_evaluators"] == num_evaluators
    assert found.trajectory == lazily.trajectory


def test_it_does_not_go_on_as_another_search(search: Search) -> None:
    assert search(*LAZY).status == 0
    refused = search("resume=true", "search.selection=exhaustive", bare=True)
    assert refused.status == 2
    assert "belongs to another run" in refused.output


@pytest.mark.parametrize("command", ["prune", "plan"])
@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            ("search.strategy=random", "search.distribution=[1,0,0]", "search.selection=lazy"),
            [
                "search.selection: lazy, but a step of search.strategy=random has one candidate; "
                "it is for greedy"
            ],
        ),
        (("search.selection=some",), ["search.selection: 'some'; one of exhaustive, lazy"]),
        (
            ("search.lazy.tolerance=0.1", "search.lazy.wave_size=4"),
            [
                "search.lazy.tolerance, search.lazy.wave_size: no effect with "
                "search.selection=exhaustive; leave out"
            ],
        ),
        (
            (
                "search.selection=lazy",
                "search.lazy.tolerance=-1",
                "search.lazy.wave_size=0",
                "search.lazy.rescore_every=0",
                "search.lazy.near_layers=-1",
            ),
            [
                "search.lazy.near_layers: -1; at least 0",
                "search.lazy.rescore_every: 0; at least 1",
                "search.lazy.tolerance: -1; it is in nats per token, 0 or above",
                "search.lazy.wave_size: 0; at least 1",
            ],
        ),
        (
            ("search.selection=lazy", "search.lazy.tolerance=inf"),
            ["search.lazy.tolerance: inf; it is in nats per token, 0 or above"],
        ),
    ],
)
def test_settings_that_mean_nothing(
    cli: Cli, arguments: list[str], command: str, words: tuple[str, ...], messages: list[str]
) -> None:
    outcome = cli(command, *arguments, *words)
    assert outcome.status == 2
    assert sorted(outcome.errors) == [f"error: {message}" for message in messages]


def test_a_plan_says_that_it_is_an_upper_limit(cli: Cli, arguments: list[str]) -> None:
    """The evaluations and FLOPs of the exhaustive search."""
    whole = cli("plan", *arguments, folder="whole")
    lazy = cli("plan", *arguments, "search.selection=lazy", folder="lazy")
    mine, most = lazy.read("plan.json"), whole.read("plan.json")
    assert mine["at_most"] is True
    assert "at_most" not in most
    for stage, found in mine["evaluations"].items():
        assert found["max"] == most["evaluations"][stage]["max"]
        assert found["min"] == mine["steps"][stage]["min"]
    assert most["flops"] < mine["flops"]
    assert "at most so many evaluations" in " ".join(lazy.output.split())
    assert "at most" not in whole.output


def test_a_report_says_what_was_left_out(lazily: Outcome, exact: Outcome, cli: Cli) -> None:
    outcome = cli("report", exact.folder, lazily.folder, "log_to_mlflow=false")
    assert outcome.status == 0, outcome.output
    page = (outcome.folder / "report.html").read_text()
    plain = re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    text = " ".join(html.unescape(plain).split())
    taken = lazily.summary["evaluations"]
    assert f"{taken['candidates']} of {taken['candidates'] + taken['unscored']}" in text
    steps = lines_of(lazily)
    partly = sum(bool(line["unscored"]) for line in steps)
    said = f"B: {partly} of {len(steps)} steps left candidates out (search.selection=lazy)"
    assert said in text
    lazy_step = next(line for line in lines_of(lazily) if line["unscored"])
    scored = len(lazy_step["candidates"])
    assert f" {scored} of {scored + len(lazy_step['unscored'])} " in text


def test_a_lazy_search_reproduces_itself(
    lazily: Outcome, cli: Cli, own_conf: Path, store_and_tracking: list[str]
) -> None:
    """Lazily, as the experiment says; a step that another search would have taken is called left
    out where it was.
    """
    made = cli("reproduce", f"record={lazily.folder}", "record_as=mine/lazy", folder=None)
    assert made.status == 0, made.output
    recorded = yaml.safe_load((own_conf / "experiment/mine/lazy.yaml").read_text())
    assert recorded["search"]["selection"] == "lazy"
    given = ("experiment=mine/lazy", *store_and_tracking, "mode=search", "evaluation=none")
    same = cli("reproduce", *given, folder="same")
    assert same.status == 0, same.output
    taken = lazily.summary["evaluations"]
    said = f"{taken['candidates']} of {taken['candidates'] + taken['unscored']}"
    assert f"candidates scored: {said} (search.selection=lazy)" in same.output
    assert same.read("verdict.json")["evaluations"] == {
        name: taken[name] for name in ("candidates", "unscored")
    }
    counts = cli("reproduce", *given[:-2], "mode=counts", folder="counts")
    checks = counts.read("verdict.json")["checks"]
    assert {each["verdict"] for each in checks if "evaluations" in each["quantity"]} == {
        "not checked"
    }
    steps: list[str] = recorded["expected"]["steps"]
    line = next(line for line in lines_of(lazily) if line["unscored"])
    left_out, index = line["unscored"][0], line["step"] - 1
    size = left_out.get("kv_heads") or left_out.get("mlp_channels")
    steps[index] = ":".join(
        map(str, (left_out["kind"], left_out["layer"], *([size] if size else [])))
    )
    other = cli("reproduce", *given, f"expected.steps=[{','.join(steps)}]", folder="other")
    assert other.status == 1
    assert other.read("verdict.json")["divergence"]["change_expected"] == left_out["change"]
    assert (
        f"expected was {steps[index]}, which was left out there (search.selection=lazy): its last "
        f"known change was {left_out['change']:+.6f} nat per token"
    ) in " ".join(other.output.split())
