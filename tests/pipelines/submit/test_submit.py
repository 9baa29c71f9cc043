"""`multipruner submit` against what answers as a cluster's dashboard: what is refused, what is said
before, and what the cluster gets.
"""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.dashboard import TOKEN, Dashboard, dashboard
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli
from tests.tiny_search import tiny_search

STORE = "store=postgresql"
OUTPUT = "output_dir=/shared/runs/mine"


@pytest.fixture(autouse=True)
def _token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("MULTIPRUNER_STORE_URL", raising=False)
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def board() -> Iterator[Dashboard]:
    with dashboard() as found:
        yield found


Submit = Callable[..., Outcome]


@pytest.fixture
def submit(cli: Cli, board: Dashboard) -> Submit:
    """`submit("prune", ...)` at the board, without being asked."""
    return lambda *words: cli("submit", "--address", board.address, "--yes", *words, folder=None)


def test_the_plan_is_shown_and_the_words_arrive_as_they_are(
    submit: Submit, board: Dashboard, checkpoint_folder: Path, token_file: Path
) -> None:
    """Spaces, quotes and equal signs, too; what is about the plan alone stays here."""
    words = [
        *tiny_search(checkpoint_folder, token_file),
        "cluster.num_evaluators=2",
        'output_dir=/shared/runs/it\'s a=b "c" $HOME',
        STORE,
        "tracking=server",
    ]
    outcome = submit("prune", *words, "tflops_per_evaluator=0.00001")
    assert outcome.status == 0, outcome.output
    [request] = board.submitted
    assert shlex.split(request["entrypoint"]) == ["multipruner", "prune", *words, "cluster=ray"]
    assert request["submission_id"] == "it-s-a-b-c-HOME-prune-1"
    assert request["metadata"]["output_dir"] == '/shared/runs/it\'s a=b "c" $HOME'
    said = " ".join(outcome.output.split())
    assert "tiny-llama, 68,016 parameters, to ratio 0.25" in said
    assert "│ block │ 1 to 1 │ 8 to 8 │" in said
    assert "memory of an evaluator (" in said
    assert "time on 2 evaluators │ │ 27 s │" in said
    assert "evaluators: 2 evaluators, 1 GPU and 1 CPU each" in said
    assert "submitted as it-s-a-b-c-HOME-prune-1" in said
    assert f"stop it-s-a-b-c-HOME-prune-1 --address {board.address}" in said
    again = next(line for line in outcome.output.splitlines() if "to go on" in line)
    assert shlex.split(again.partition(": ")[2]) == [
        *("multipruner", "submit", "--address", board.address),
        *("prune", *words, "cluster=ray", "tflops_per_evaluator=0.00001"),
    ]
    assert "warning" not in said
    assert TOKEN not in outcome.output
    assert TOKEN not in str(board.submitted)


def test_a_sweep_has_the_plan_of_all_its_points(
    submit: Submit, board: Dashboard, checkpoint_folder: Path, token_file: Path
) -> None:
    words = tiny_search(checkpoint_folder, token_file, "search.target_ratio=[0.1,0.25]")
    outcome = submit("sweep", *words, "max_perplexity_ratio=2", OUTPUT, STORE)
    assert outcome.status == 0, outcome.output
    assert "2 points: evaluations by stage" in outcome.output
    [request] = board.submitted
    assert "'search.target_ratio=[0.1,0.25]'" in request["entrypoint"]


def test_a_model_that_is_on_the_cluster_alone_has_no_plan(submit: Submit, board: Dashboard) -> None:
    outcome = submit("prune", "model.path=/shared/models/big", OUTPUT, STORE)
    assert outcome.status == 0, outcome.output
    assert "no plan, since the model is not here: model.path: '/shared/mod" in outcome.output
    assert len(board.submitted) == 1


def test_what_no_path_reaches_is_not_submitted(
    submit: Submit, board: Dashboard, checkpoint_folder: Path, token_file: Path
) -> None:
    words = tiny_search(checkpoint_folder, token_file, "search.target_ratio=0.97")
    outcome = submit("prune", *words, OUTPUT, STORE)
    assert outcome.status == 2
    assert "error: search.target_ratio: 0.97; no path reaches it" in outcome.output
    assert board.submitted == []


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        ([], ["COMMAND: missing; give the command to run on the cluster: prune, sweep, solve, "]),
        (["prnue"], ["prnue: cannot be submitted; did you mean prune?"]),
        (["report"], ["report: cannot be submitted; one of prune, sweep, solve, latency, "]),
        (["prune", OUTPUT, STORE, "serach.seed=1"], ["serach.seed: no such option; did you mean"]),
        (["prune", "run=/a", STORE], ["run: no such option"]),
        (
            ["prune"],
            ["output_dir: missing; give an abs", "store.url: sqlite:///outputs/scores.db, which"],
        ),
        (["solve", "run=/runs/a", "search.target_ratio=0.2"], ["output_dir: missing"]),
        (["prune", "output_dir=runs/a", STORE], ["output_dir: runs/a, which is relative"]),
        (["prune", "output_dir=~/a", STORE], ["output_dir: ~/a, which is relative"]),
        (["export", "run=runs/a"], ["run: runs/a, which is relative to wherever the job runs"]),
        (["export", "output_dir=/a", "tflops_per_evaluator=1"], ["tflops_per_evaluator=1: for"]),
        (
            ["prune", OUTPUT, "store.url=postgresql://me:geheim@db/scores"],
            ["store.url: postgresql://me:***@db/scores holds a password, which the dashboard"],
        ),
        (["prune", OUTPUT, STORE, "--cfg", "job"], ["unrecognized arguments: --cfg"]),
        (["prune", OUTPUT, STORE, "search.target_ratio=[0.1,0.2]"], ["search.target_ratio=[0.1"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_what_is_refused(
    submit: Submit, board: Dashboard, words: list[str], problems: list[str]
) -> None:
    """All at once, before the cluster is asked anything."""
    outcome = submit(*words)
    assert outcome.status == 2
    assert len(outcome.errors) == len(problems), outcome.output
    for line, problem in zip(outcome.errors, problems, strict=True):
        assert line.startswith(f"error: {problem}"), line
    assert "geheim" not in outcome.output
    assert board.tokens == []


@pytest.mark.parametrize(
    ("words", "sent", "folder"),
    [
        (
            ["export", "run=/runs/a", "format=gguf"],
            "multipruner export run=/runs/a format=gguf",
            "/runs/a/gguf",
        ),
        (
            ["solve", "run=/runs/a", "output_dir=/b//c/", "search.target_ratio=0.2"],
            "multipruner solve run=/runs/a output_dir=/b//c/ search.target_ratio=0.2",
            "/b/c",
        ),
        (
            ["evaluate", "run=/runs/a", STORE, "cluster=local"],
            f"multipruner evaluate run=/runs/a {STORE} cluster=local",
            "/runs/a",
        ),
        (
            ["recover", "run=/runs/a"],
            "multipruner recover run=/runs/a cluster=ray",
            "/runs/a/recovery",
        ),
        (
            ["prune", "resume=true", "output_dir=/runs/a"],  # which knows its store
            "multipruner prune resume=true output_dir=/runs/a cluster=ray",
            "/runs/a",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_evaluators_are_on_the_cluster_unless_told_otherwise(
    submit: Submit, board: Dashboard, words: list[str], sent: str, folder: str
) -> None:
    outcome = submit(*words)
    assert outcome.status == 0, outcome.output
    assert board.submitted[0]["entrypoint"] == sent
    assert board.submitted[0]["metadata"]["output_dir"] == folder


def test_nobody_can_be_asked(cli: Cli, board: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    words = ("--address", board.address, "export", "run=/runs/a")
    outcome = cli("submit", *words, folder=None)
    assert (outcome.status, outcome.errors) == (
        2,
        [
            "error: --yes: missing; without a terminal nobody can be asked whether to submit, so "
            "give --yes"
        ],
    )
    assert board.tokens == []


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "status", "count"),
    [("y\n", 0, 1), ("YES\n", 0, 1), ("n\n", 1, 0), ("\n", 1, 0), ("", 1, 0)],
)
def test_a_person_is_asked_after_the_plan(
    cli: Cli,
    board: Dashboard,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    status: int,
    count: int,
) -> None:
    monkeypatch.setattr(sys, "stdin", _Terminal(answer))
    words = ("--address", board.address, "export", "run=/runs/a")
    outcome = cli("submit", *words, folder=None)
    assert outcome.status == status, outcome.output
    assert len(board.submitted) == count
    before, _, after = outcome.output.partition("submit? [y/N] ")
    assert "command:    multipruner export run=/runs/a" in before
    assert after.startswith("submitted as a-export-1" if count else "error: not submitted")


def test_the_address_may_be_in_the_environment(
    cli: Cli, board: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("submit", "--yes", "export", "run=/runs/a")
    missing = cli(*words, folder=None)
    assert missing.status == 2
    assert missing.errors[0].startswith("error: --address: missing; give HOST:PORT")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://{board.address}")
    outcome = cli(*words, folder=None)
    assert outcome.status == 0, outcome.output
    assert "\n  stop:   multipruner stop a-export-1\n" in outcome.output


def test_two_jobs_in_one_folder(submit: Submit, board: Dashboard) -> None:
    board.add("mine-prune-3", "RUNNING", "multipruner prune", output_dir="/shared/runs/mine")
    words = ("prune", "model.path=/shared/m", OUTPUT, STORE)
    refused = submit(*words)
    assert refused.status == 2
    assert refused.errors == [
        "error: output_dir: the job mine-prune-3 is at work in /shared/runs/mine; wait for it, or "
        f"end it with multipruner stop mine-prune-3 --address {board.address}"
    ]
    board.add("mine-prune-3", "FAILED", "multipruner prune", output_dir="/shared/runs/mine")
    assert submit(*words).status == 0
    assert [each["submission_id"] for each in board.submitted] == ["mine-prune-4"]


def test_a_cluster_that_asks_for_no_token(cli: Cli) -> None:
    with dashboard(token=None) as board:
        words = ("submit", "--yes", "--address", board.address)
        search = ("prune", "model.path=/shared/m", OUTPUT, STORE)
        refused = cli(*words, *search, folder=None)
        assert refused.status == 2
        assert "asks for no token: whoever reaches its ports runs code as you" in refused.output
        assert refused.output.strip().endswith("or accept it with cluster.allow_open=true")
        assert board.submitted == []
        outcome = cli(*words, *search, "cluster.allow_open=true", folder=None)
        assert outcome.status == 0, outcome.output
        assert len(board.submitted) == 1
        assert set(board.tokens) == {""}


def test_what_differs_on_the_cluster_is_said(cli: Cli) -> None:
    with dashboard(ray_version="2.61.1") as board:
        words = ("prune", "model.path=/shared/m", OUTPUT, STORE)
        outcome = cli("submit", "--yes", "--address", board.address, *words, folder=None)
    assert outcome.status == 0, outcome.output
    said = [line for line in outcome.output.splitlines() if line.startswith("warning: ")]
    assert [line.split(";")[0] for line in said] == [
        "warning: tracking.uri: sqlite:///outputs/mlflow.db will lie on the node that runs the "
        "driver, and go with it",
        "warning: the cluster runs Ray 2.61.1, this is Ray 2.60.0",
    ]


def test_a_cluster_that_is_not_there(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.cluster.jobs._LISTEN_S", 0.3)
    words = ("submit", "--yes", "--address", "127.0.0.1:1", "export", "run=/runs/a")
    outcome = cli(*words, folder=None)
    assert outcome.status == 2
    [line] = outcome.errors
    assert line.startswith("error: --address: nothing answers at http://127.0.0.1:1 within 0.3 s")


def test_what_is_on_the_cluster_alone_only_costs_the_plan(
    submit: Submit, checkpoint_folder: Path
) -> None:
    table = "latency=/shared/latency.json"
    target = ("search=allocation", "search.target={latency: 0.8}", table)
    outcome = submit("prune", f"model.path={checkpoint_folder}", *target, OUTPUT, STORE)
    assert outcome.status == 0, outcome.output
    assert "no plan, since the table is not here: latency: /shared/latency.json" in outcome.output


def test_one_process_recovers(submit: Submit) -> None:
    said = submit("recover", "run=/runs/a").output
    assert "evaluators: 1 evaluator, 1 GPU and 1 CPU each" in said


@pytest.mark.parametrize("url", ["sqlite+pysqlite:///scores.db", "sqlite:///scores.db"])
def test_a_relative_store_is_refused_in_every_spelling(submit: Submit, url: str) -> None:
    outcome = submit("prune", "model.path=/shared/m", OUTPUT, f"store.url={url}")
    assert outcome.status == 2
    assert outcome.errors[0].startswith(f"error: store.url: {url}, which is relative")
