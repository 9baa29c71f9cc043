"""Words of a command line as people write them: paths with any characters work, options as other
programs take them are explained.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.config.overrides import PATHS, with_quoted_path
from tests.pipelines.conftest import Cli
from tests.tiny_search import tiny_search

NAMES = ["a b", "ünï 漢字", "a=b", "a,b", "(x) {c}", "~tilde", "[b]bold[/b]", "'q\"", "1% #"]


@pytest.mark.parametrize("name", NAMES)
def test_paths_hold_any_characters(
    cli: Cli, name: str, tmp_path: Path, checkpoint_folder: Path, token_file: Path
) -> None:
    """The model, the calibration file, the store, MLflow's database and the run lie there; then
    the run is gone on with and read.
    """
    folder = tmp_path / "in" / name
    folder.mkdir(parents=True)
    model = shutil.copytree(checkpoint_folder, folder / "model")
    tokens = shutil.copy(token_file, folder / "tokens.safetensors")
    places = [
        "cluster=inline",
        f"store.url=sqlite:///{folder}/scores.db",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
    ]
    words = tiny_search(model, Path(tokens), "search.target_ratio=0.1")
    searched = cli("prune", *words, *places, f"output_dir={folder}/run")
    assert searched.status == 0, searched.output
    assert (folder / "run/summary.json").is_file()
    assert (folder / "scores.db").is_file()
    for command, given in (
        ("prune", [f"output_dir={folder}/run", "resume=true"]),
        ("plan", [*words, f"output_dir={folder}/plan"]),
        ("report", [f"{folder}/run", f"output_dir={folder}/report", "log_to_mlflow=false"]),
    ):
        outcome = cli(command, *given)
        assert outcome.status == 0, outcome.output
    assert (folder / "report/report.html").is_file()
    status = cli("status", f"{folder}/run", folder=None)
    assert status.status == 0, status.output


@pytest.mark.parametrize("option", sorted(PATHS))
@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_quoted_once(option: str, name: str) -> None:
    word = f"{option}=/in/{name}"
    if "," in name and option.endswith(".path"):
        return  # several values for --multirun, unless there is such a file
    quoted = with_quoted_path(word)
    assert with_quoted_path(quoted) == quoted
    assert (quoted == word) == (name in ("a b",))


@pytest.mark.parametrize(
    "word",
    [
        "model.path=[a,b]",
        "model.path=a,b",
        "output_dir=${oc.env:HOME}/x",
        "run=null",
        "model.path=",
    ],
)
def test_what_hydra_reads_is_left_as_it_is(word: str) -> None:
    assert with_quoted_path(word) == word
    assert with_quoted_path("search.seed=(") == "search.seed=("


@pytest.mark.parametrize("word", ["run=a,b", "output_dir=a,b", "model.path=a,b"])
def test_with_multirun_a_comma_parts_two_paths(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_quoted_path(word, multirun=True) == word
    (tmp_path / "a,b").mkdir()
    name = word.partition("=")[0]
    assert with_quoted_path(word, multirun=True) == f"{name}='a,b'", "there is such a file"


COMMANDS = (
    "prune", "plan", "sweep", "solve", "latency", "recover", "evaluate", "export", "report",
    "reproduce",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_options_as_other_programs_take_them(cli: Cli, command: str) -> None:
    outcome = cli(command, "--target-ratio", "0.1", "--output-dir=x")
    assert outcome.status == 2
    hint = "did you mean search.target_ratio=VALUE?"
    if command in ("latency", "recover", "evaluate", "export", "report"):
        hint = "--help lists all"
    assert outcome.errors == [
        f"error: --target-ratio: options are given as NAME=VALUE; {hint}",
        "error: --output-dir: options are given as NAME=VALUE; did you mean output_dir=x?",
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-r", "0.1"], "0.1: no such option; --help lists all"),
        (["-m", "0.1"], "0.1: no such option; --help lists all"),
        (["model.path=x", "-r", "0.1"], "unrecognized arguments: 0.1"),
        (["-R", "0.1"], "-R: options are given as NAME=VALUE; --help lists all"),
        (["-1"], "-1: options are given as NAME=VALUE; --help lists all"),
        (["-"], "-: options are given as NAME=VALUE; --help lists all"),
        (["-x=1"], "-x: options are given as NAME=VALUE; --help lists all"),
        (["--cfg"], "argument --cfg/-c: expected one argument"),
        (["-c", "5"], "argument --cfg/-c: invalid choice: '5'"),
    ],
)
@pytest.mark.parametrize("command", ["prune", "export"])
def test_short_flags(cli: Cli, command: str, words: list[str], says: str) -> None:
    """Some are Hydra's: `-r` runs, and takes no value."""
    outcome = cli(command, *words, folder=None)
    assert outcome.status == 2
    [error] = outcome.errors
    assert error.startswith(f"error: {says}")
    assert outcome.output.splitlines() == [error]


@pytest.mark.parametrize("command", ["prune", "plan", "sweep", "reproduce"])
@pytest.mark.parametrize("word", ["multipruner/llama2_7b_2", "multiprunner/llama2_7b_22"])
def test_a_misspelt_experiment(cli: Cli, command: str, word: str) -> None:
    outcome = cli(command, f"experiment={word}")
    assert outcome.status == 2
    [error] = outcome.errors
    assert f"experiment={word}: " in error
    assert error.endswith("did you mean experiment=multipruner/llama2_7b_22?")


def test_several_values_are_for_a_sweep(cli: Cli) -> None:
    outcome = cli("prune", "search.target_ratio=[0.1,0.2]", "calibration=pydoc")
    assert outcome.status == 2
    [error] = outcome.errors
    assert error.endswith("it takes one value; several are for multipruner sweep")


@pytest.mark.timeout(60)
def test_a_sweep_of_a_million_points(cli: Cli, arguments: list[str]) -> None:
    ratios = ",".join(f"{number / 10_000:.4f}" for number in range(1, 1001))
    seeds = ",".join(map(str, range(1000)))
    words = [word for word in arguments if not word.startswith("search.target_ratio")]
    outcome = cli("sweep", *words, f"search.target_ratio=[{ratios}]", f"calibration.seed=[{seeds}]")
    assert outcome.status == 2
    [error] = outcome.errors
    assert "grid: 1,000,000 points" in error
    assert "at most 1,000" in error


@pytest.mark.parametrize("command", ["prune", "plan"])
@pytest.mark.parametrize("kind", ["inline", "local"])
def test_more_threads_than_cores(cli: Cli, arguments: list[str], kind: str, command: str) -> None:
    words = [word for word in arguments if not word.startswith("cluster=")]
    outcome = cli(command, *words, f"cluster={kind}", "cluster.num_cpus_per_evaluator=100000")
    assert outcome.status == 2
    [error] = outcome.errors
    assert "cluster.num_cpus_per_evaluator: 100000; this machine has" in error
