"""A hub that is away costs seconds, not a minute of retries."""

from __future__ import annotations

import time
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from pruning.calibration import hub
from pruning.calibration.hub import load_hub_dataset
from pruning.calibration.sources import source_rows
from pruning.calibration.spec import CalibrationSpec
from pruning.errors import InputError

NOWHERE = "http://127.0.0.1:9"
"""Connections to it are refused."""


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As without HF_HUB_OFFLINE, which the tests set, and with nothing in the cache."""
    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)


@pytest.mark.usefixtures("online")
def test_a_hub_that_is_away_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", NOWHERE)
    spec = CalibrationSpec("alpaca", 1, 1, 1, sequence_length=16, seed=0)
    said = f"'tatsu-lab/alpaca' is neither .*{NOWHERE} does not answer.*calibration.path=FILE"
    started = time.monotonic()
    with pytest.raises(InputError, match=said):
        source_rows(spec)
    assert time.monotonic() - started < 8


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("answers", [True, False])
def test_only_a_hub_that_is_away_is_left_alone(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def load(path: str, **options: object) -> str:
        seen.append((constants.is_offline_mode(), datasets.config.HF_HUB_OFFLINE))
        raise ConnectionError(f"{path} {options}")

    monkeypatch.setattr(hub, "_hub_answers", lambda: answers)
    monkeypatch.setattr(datasets, "load_dataset", load)
    said = "a {'split': 'train'}" if answers else f"{constants.ENDPOINT} does not answer"
    with pytest.raises(ConnectionError, match=said):
        load_hub_dataset("a", split="train")
    assert seen == [(not answers, not answers)]
    assert not constants.is_offline_mode()
    assert not datasets.config.HF_HUB_OFFLINE


def test_whoever_answers_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def head(self, url: str, timeout: float) -> str:
            assert (url, timeout) == (constants.ENDPOINT, hub.ANSWER_S)
            return "404"

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    assert hub._hub_answers()
