"""Options that do nothing are refused for new runs."""

from __future__ import annotations

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


def test_a_run_that_is_there_goes_on(
    search: Search, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (BLOCKS, "search.importance=none", "search.target_ratio=0.1")
    with monkeypatch.context() as earlier:
        earlier.setattr(
            "pipelines.config.search.SearchConfig.problems_of_new", lambda *_: list[str]()
        )
        assert search(*words).status == 0
    assert search(*words).status == 0
    resumed = search("resume=true", "search.importance=none", bare=True)
    assert resumed.status == 0, resumed.output


def test_what_a_file_of_conf_sets_is_accepted(cli: Cli, arguments: list[str]) -> None:
    outcome = cli("plan", "search=blockpruner", *arguments, BLOCKS)
    assert outcome.status == 0, outcome.output
