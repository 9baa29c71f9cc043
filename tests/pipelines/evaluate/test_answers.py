"""Answers are shared by evaluations that compute alike, and by no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipelines.evaluate.conftest import QUICK, Evaluate


def test_answers_are_for_those_who_compute_alike(
    run: Evaluate, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, found = (f"model.path={reader}", *QUICK, "evaluation.tasks=[piqa]"), []
    for number, setting in enumerate(("", "COMPATIBLE", "COMPATIBLE", "")):
        monkeypatch.setenv("MKL_CBWR", setting)
        outcome = run(*words, folder=f"evaluation{number}")
        assert outcome.status == 0, outcome.output
        found.append(outcome.evaluation["answers"])
    assert [answers["reused"] for answers in found[:2]] == [0, 0]
    assert [answers["computed"] for answers in found[2:]] == [0, 0]
