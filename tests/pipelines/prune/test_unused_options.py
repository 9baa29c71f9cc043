"""Options that do nothing are refused for new runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipelines.conftest import Cli, Search

BLOCKS = "search.distribution=[1,0,0]"
SAID = (
    "error: search.importance: none, which has no effect with search.distribution=[1.0, 0.0, 0.0]: "
    "no width changes; leave it out"
)


@pytest.mark.parametrize("command", ["prune", "plan"])
def test_an_order_of_channels_where_no_width_changes(
    cli: Cli, arguments: list[str], command: str
) -> None:
    outcome = cli(command, *arguments, BLOCKS, "search.importance=none", "calibration.batch_size=0")
    assert outcome.status == 2
    assert sorted(outcome.errors) == [
        "error: calibration.batch_size: 0; at least 1",
        SAID,
    ], "with all others"


@pytest.mark.parametrize(
    ("shares", "option", "reason"),
    [
        ((1, 0, 0), "mlp_group_channels", "no MLP is narrowed"),
        ((1, 0, 0), "head_group_channels", "no attention block is narrowed"),
        ((30, 0, 70), "mlp_group_channels", "no MLP is narrowed"),
        ((30, 70, 0), "head_group_channels", "no attention block is narrowed"),
    ],
)
def test_a_group_of_a_stage_that_removes_nothing(
    cli: Cli, arguments: list[str], shares: tuple[int, ...], option: str, reason: str
) -> None:
    words = (*arguments, f"search.distribution={list(shares)}".replace(" ", ""))
    others = {"mlp_group_channels": 8, "head_group_channels": 16}
    outcome = cli("plan", *words, f"search.{option}={others[option]}")
    assert outcome.status == 2
    assert outcome.errors == [
        f"error: search.{option}: {others[option]}, which has no effect with "
        f"search.distribution={list(map(float, shares))}: {reason}; leave it out"
    ]
    accepted = [f"search.{option}=null"]
    accepted += [
        f"search.{name}={value}"
        for (name, value), share in zip(others.items(), shares[1:], strict=True)
        if share
    ]
    outcome = cli("plan", *words, *accepted)
    assert outcome.status == 0, outcome.output


def test_a_run_in_the_folder_above_dated_ones_says_nothing(
    cli: Cli, arguments: list[str], tmp_path: Path
) -> None:
    """Without output_dir a search makes a folder in outputs/, so it is a new one."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/run.json").write_text("{}")
    outcome = cli("prune", *arguments, BLOCKS, "search.importance=none", folder=None)
    assert (outcome.status, outcome.errors) == (2, [SAID])


def test_a_run_that_is_there_goes_on(
    search: Search, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = ("search.mlp_group_channels=8", "search.head_group_channels=16")
    words = (BLOCKS, "search.importance=none", "search.target_ratio=0.1", *groups)
    with monkeypatch.context() as earlier:
        earlier.setattr(
            "pipelines.config.search.SearchConfig.problems_of_new", lambda *_: list[str]()
        )
        assert search(*words).status == 0
    assert search(*words).status == 0
    resumed = search("resume=true", "search.importance=none", *groups, bare=True)
    assert resumed.status == 0, resumed.output


def test_what_a_file_of_conf_sets_is_accepted(cli: Cli, arguments: list[str]) -> None:
    outcome = cli("plan", "search=blockpruner", *arguments, BLOCKS)
    assert outcome.status == 0, outcome.output
