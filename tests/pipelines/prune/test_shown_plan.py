"""A search that a person starts in a terminal says first what it will take."""

from __future__ import annotations

import pytest
from rich.console import Console

from pipelines.prune import pipeline
from tests.pipelines.conftest import Search

TITLE = "tiny-llama, 68,016 parameters, to ratio 0.25"


@pytest.fixture
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pipeline, "console", Console(force_terminal=True, color_system=None, width=120)
    )


@pytest.mark.usefixtures("_terminal")
def test_before_the_first_step_and_once(search: Search) -> None:
    outcome = search()
    assert outcome.status == 0, outcome.output
    before, _, after = outcome.output.partition(TITLE)
    assert "parameters, float32" not in before, "what is announced comes after it"
    table, _, steps = after.partition("step 1:")
    assert "memory of an evaluator (float32)" in table
    assert "time on" not in table
    assert "step 2:" in steps
    assert TITLE not in search().output, "it goes on"


def test_elsewhere_it_is_not_shown(search: Search) -> None:
    assert TITLE not in search().output
