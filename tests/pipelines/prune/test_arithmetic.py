"""Results are shared by runs that compute alike, and by no others."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from tests.pipelines.conftest import Search


def test_scores_are_for_those_who_compute_alike(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MKL chooses other kernels by this variable, so it is part of every score's key."""
    monkeypatch.delenv("MKL_CBWR", raising=False)
    first = search(folder="a")
    assert first.status == 0, first.output
    assert first.summary["evaluations"]["scored"] > 50
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    other = search(folder="b")
    assert other.summary["evaluations"] == first.summary["evaluations"]
    assert search(folder="c").summary["evaluations"]["scored"] == 0
    monkeypatch.delenv("MKL_CBWR")
    again = search(folder="d")
    assert again.summary["evaluations"]["scored"] == 0
    assert again.trajectory == first.trajectory
    with sqlite3.connect(tmp_path / "scores.db") as store:
        texts = [json.loads(text) for (text,) in store.execute("select description from contexts")]
    assert {text["arithmetic"]["variables"] for text in texts} == {"", "MKL_CBWR=COMPATIBLE"}
    assert all(text["arithmetic"]["processor"] for text in texts)
