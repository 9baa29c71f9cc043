"""What is said of a search that is refused."""

from __future__ import annotations

from tests.pipelines.conftest import Search


def refused(search: Search, *overrides: str, says: list[str], folder: str = "run") -> None:
    outcome = search(*overrides, folder=folder)
    assert outcome.status == 2, outcome.output
    assert "Traceback" not in outcome.output
    text = outcome.output.replace("\n", " ")
    for words in says:
        assert words in text, outcome.output
    assert not (outcome.folder / "trajectory.jsonl").exists()
