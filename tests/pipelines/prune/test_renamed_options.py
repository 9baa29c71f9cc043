"""`search.layout`, which is `search.shape_constraint` now: commands, experiments and folders of
version 0.1.0 say it, and mean the same.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.config.renamed import constraint_of
from pipelines.runs.saved_run import read_saved_run
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli, Search

BLOCKS = "search.distribution=[1,0,0]"
SAYS = "search.layout: portable is read as search.shape_constraint=deployable"


@pytest.fixture(autouse=True)
def not_said_yet() -> None:
    constraint_of.cache_clear()


@pytest.fixture
def deployable(search: Search) -> Outcome:
    outcome = search(BLOCKS, "search.shape_constraint=deployable", folder="new")
    assert outcome.status == 0, outcome.output
    assert "is read as" not in outcome.output
    return outcome


def as_before(folder: Path) -> None:
    """Makes a folder one of version 0.1.0."""
    config = folder / "config.yaml"
    text = config.read_text()
    assert "  shape_constraint: deployable\n" in text
    assert "layout" not in text
    config.write_text(text.replace("shape_constraint: deployable", "layout: portable"))
    identity = json.loads((folder / "run.json").read_text())["identity"]
    assert identity["search.layout"] == "portable", "as it was"


def test_on_the_command_line(search: Search, deployable: Outcome) -> None:
    outcome = search(BLOCKS, "search.layout=portable", folder="old")
    assert outcome.status == 0, outcome.output
    assert outcome.output.count(SAYS) == 1
    assert outcome.trajectory == deployable.trajectory
    assert outcome.summary["identity"] == deployable.summary["identity"]
    both = read_saved_run(str(outcome.folder)), read_saved_run(str(deployable.folder))
    assert both[0].config.search == both[1].config.search


def test_in_an_experiment(search: Search, own_conf: Path, deployable: Outcome) -> None:
    """One that was recorded has every option, and more can be asked for on the command line."""
    text = "# @package _global_\nsearch: {{distribution: [1, 0, 0], layout: {}}}\n"
    for layout in ("any", "portable"):
        (own_conf / f"experiment/{layout}.yaml").write_text(text.format(layout))
    outcome = search("experiment=portable", BLOCKS, folder="old")
    assert outcome.summary["identity"] == deployable.summary["identity"]
    words = ("experiment=any", BLOCKS, "search.shape_constraint=deployable")
    both = search(*words, folder="any")
    assert both.summary["identity"] == deployable.summary["identity"]
    assert "is read as search.shape_constraint=none" not in both.output


BOTH = [
    "error: search.layout, search.shape_constraint: both are given; leave search.layout out, which "
    "is the old name, or give search.layout=null where an experiment has it"
]


@pytest.mark.parametrize("layout", ["any", "portable"])
@pytest.mark.parametrize("constraint", ["none", "deployable"])
def test_both_names_at_once(cli: Cli, arguments: list[str], layout: str, constraint: str) -> None:
    """Whatever they say: one of them would be passed over."""
    both = (f"search.layout={layout}", f"search.shape_constraint={constraint}")
    outcome = cli("plan", *arguments, BLOCKS, *both)
    assert outcome.status == 2
    assert outcome.errors == BOTH
    sweep = ("search.target_ratio=[0.1,0.2]", both[0], f"search.shape_constraint=[{constraint}]")
    for command in ("plan", "sweep"):
        assert cli(command, *arguments, BLOCKS, *sweep).errors == BOTH


def test_the_old_name_of_an_experiment_is_not_passed_over(
    cli: Cli, arguments: list[str], own_conf: Path
) -> None:
    """`none` on the command line would be lost to `portable`, which its old name says."""
    text = "# @package _global_\nsearch: {distribution: [1, 0, 0], layout: portable}\n"
    (own_conf / "experiment/portable.yaml").write_text(text)
    words = (*arguments, "experiment=portable", "search.shape_constraint=none")
    assert cli("plan", *words).errors == BOTH
    outcome = cli("plan", *words, "search.layout=null")
    assert outcome.status == 0, outcome.output


def test_in_the_folder_of_an_earlier_run(cli: Cli, search: Search, deployable: Outcome) -> None:
    folder, before = deployable.folder, deployable.trajectory
    options = read_saved_run(str(folder)).config
    as_before(folder)
    assert read_saved_run(str(folder)).config == options
    constraint_of.cache_clear()
    trajectory = folder / "trajectory.jsonl"
    trajectory.write_text("".join(trajectory.read_text().splitlines(keepends=True)[:1]))
    resumed = search("resume=true", f"output_dir={folder}", bare=True)
    assert resumed.status == 0, resumed.output
    assert SAYS in resumed.output
    assert resumed.trajectory == before
    as_before(folder)
    outcome = cli("report", folder, "log_to_mlflow=false")
    assert outcome.status == 0, outcome.output


def test_a_value_that_it_never_had(search: Search) -> None:
    outcome = search("search.layout=deployable")
    assert outcome.status == 2
    assert "search.layout: 'deployable'; one of any, portable" in outcome.output
