"""What a run says of itself on MLflow's page."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.prune.search_run import SearchRun
from pipelines.tracking.description import (
    evaluation_description,
    failed,
    search_description,
    sweep_description,
    with_section,
    with_section_of,
)
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli, Search

NOTE = "mlflow.note.content"


def page(outcome: Outcome) -> Any:
    """The MLflow run of a folder."""
    client = MlflowClient(f"sqlite:///{outcome.folder.parent}/mlflow.db")
    return client.get_run(outcome.read("run.json")["mlflow_run_id"])


def command_in(note: str) -> list[str]:
    """The words of the command that it names."""
    block = note.partition("To repeat it:\n\n")[2].partition("\n\n")[0]
    return shlex.split(block.replace("\\\n", " "))


def test_a_search_says_what_came_of_it_and_how_to_repeat_it(ended: Outcome, cli: Cli) -> None:
    """The command that it names makes the same search."""
    summary, run = ended.summary, page(ended)
    note = run.data.tags[NOTE]
    pair = summary["perplexity"]["heldout"]
    assert note.startswith(f"**tiny-llama, {summary['ratio']:.1%} of the parameters removed**")
    assert f"| perplexity, held-out text | {pair['dense']:,.4g} | {pair['pruned']:,.4g} |" in note
    assert f"| parameters | {summary['num_parameters']['dense']:,} |" in note
    near = summary["near_ties"]
    assert f"{near['near']} of {near['known']} are near-ties" in note
    picture = f"![trajectory.png](get-artifact?path=trajectory.png&run_uuid={run.info.run_id})"
    assert note.endswith(picture)
    program, name, *words = command_in(note)
    assert (program, name) == ("multipruner", "prune")
    store = f"store.url=sqlite:///{ended.folder.parent}/scores.db"
    tracking = f"tracking.uri=sqlite:///{ended.folder.parent}/mlflow.db"
    again = cli("prune", *words, "cluster=inline", store, tracking, folder="again")
    assert again.status == 0, again.output
    assert again.summary["identity"] == summary["identity"]
    assert again.trajectory == ended.trajectory
    assert page(again).data.tags[NOTE].partition("![")[0] == note.partition("![")[0]


def test_a_search_that_fails_carries_its_message(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: SearchRun, started: float) -> None:
        raise OSError("no space left at sqlite:///scores.db?password=hunter2")

    monkeypatch.setattr(SearchRun, "_measured", broken)
    url = f"store.url='sqlite:///{tmp_path}/scores.db?password=hunter2'"
    outcome = search(url)
    assert outcome.status == 1
    run = page(outcome)
    assert run.info.status == "FAILED"
    note = run.data.tags[NOTE]
    assert note.startswith("**Failed**\n\n    no space left at sqlite:///scores.db?password=***\n")
    assert "**tiny-llama**" in note
    assert command_in(note)[:2] == ["multipruner", "prune"]
    monkeypatch.undo()
    assert search("resume=true", url, bare=True).status == 0
    assert "Failed" not in page(outcome).data.tags[NOTE]


def test_an_evaluation_adds_what_it_measured_once() -> None:
    report: dict[str, Any] = {
        "model": "tiny",
        "shape": "4x8",
        "ratio": 0.25,
        "perplexity": {"wikitext2": 30.0},
        "tasks": {"piqa": {"acc": 0.6, "acc_norm": 0.5, "acc_norm_stderr": 0.1}},
        "dense": {"perplexity": {"wikitext2": 20.0}, "tasks": {"piqa": {"acc_norm": 0.625}}},
    }
    text = evaluation_description(report, "multipruner evaluate run=/a")
    assert "| perplexity, wikitext2 | 20 | 30 | +50.0% |" in text
    assert "| piqa, acc norm | 0.625 | 0.5 | -20.0% |" in text
    alone = report | {"shape": None, "ratio": None, "dense": None}
    assert "| perplexity, wikitext2 | 30 |  |  |" in evaluation_description(alone, "x")
    once = with_section("a search", "## Measured", "first")
    assert with_section(once, "## Measured", "second") == "a search\n\n## Measured\n\nsecond"


def test_a_sweep_has_its_points_and_its_best() -> None:
    rows = [
        {"name": f"ratio_{index}", "ratio": index / 100, "values": {"heldout_perplexity": 20.0}}
        for index in range(1, 60)
    ]
    rows[0] |= {"ratio": None, "values": {}}
    text = sweep_description({"points": rows, "best": "ratio_9", "rule": "it is"}, "multipruner x")
    assert "**59 points**; best: ratio\\_9, it is" in text
    assert "| ratio\\_1 |  |  |" in text
    assert "| ratio\\_9 | 9.0% | 20 |" in text
    assert "and 19 more" in text
    assert len(text) < 8_000


def test_names_are_text(ended: Outcome) -> None:
    named = ended.summary | {"model": "<b>*a|b*</b>", "status": "a # stage [has] none left"}
    text = search_description(named, "multipruner prune")
    assert r"\<b\>\*a\|b\*\</b\>" in text
    assert r"**a \# stage \[has\] none left**" in text
    assert "    line\n    <b>" in failed("", "line\n<b>")


def test_what_was_measured_stays_when_a_search_describes_itself_again() -> None:
    said = with_section("old", "## Measured", "| a table |")
    again = with_section_of(said, "## Measured", "new")
    assert again == with_section("new", "## Measured", "| a table |")
    assert with_section_of("old", "## Measured", "new") == "new"
