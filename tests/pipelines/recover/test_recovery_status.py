"""What `pipelines.status` says of a recovery that runs, has ended, or was stopped."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest

from pipelines.cli.console import console
from pipelines.status import status_file
from pruning.recovery.journal import TrainingFiles
from tests.pipelines.conftest import Cli
from tests.pipelines.recover.conftest import Recover
from tests.pipelines.recover.test_recover import curve, stopped_after


def test_its_status_is_seen_while_it_runs(
    recover: Recover, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from another terminal: updates, time left, and what was gained."""
    said: list[str] = []
    watched = TrainingFiles.save

    def seen(files: TrainingFiles, step: int, write: Any) -> None:
        watched(files, step, write)
        if step == 8:
            said.append(cli("status", files.path.parent, folder=None).output)

    monkeypatch.setattr(status_file, "_EVERY_S", 0.0)
    monkeypatch.setattr(TrainingFiles, "save", seen)
    monkeypatch.setattr(console, "_width", 160)
    outcome = recover()
    lines = [json.loads(line) for line in curve(outcome.folder)]
    assert re.search(r"recovery +running +\n", said[0])
    assert f"update                     7 of 12: loss {lines[7]['loss']:.4f}" in said[0]
    [values] = re.findall(r"dense ([\d.]+), pruned ([\d.]+), recovered ([\d.]+)", said[0])
    wanted = (lines[0]["dense_nll"], lines[0]["heldout_nll"], lines[4]["heldout_nll"])
    assert values == tuple(f"{math.exp(nll):.3f}" for nll in wanted)
    assert re.search(r"rate +[\d.]+ updates/s, \d+ s left", said[0])
    over = cli("status", outcome.folder, folder=None).output
    assert re.search(r"recovery +finished: recovered +\n", over)
    assert "update                     12 of 12" in over


def test_the_status_of_one_that_was_stopped(
    recover: Recover, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(6, monkeypatch)
    outcome = recover()
    status = json.loads(cli("status", outcome.folder, "--json", folder=None).output)
    assert (status["state"], status["alive"], status["recovery"]["step"]) == ("stopped", False, 6)
    path = outcome.folder / "status.json"
    path.write_text(path.read_text().replace('"stopped"', '"running"'))
    status = json.loads(cli("status", outcome.folder, "--json", folder=None).output)
    assert status["state"] == "interrupted", "as by a kill"
    assert status["resume"] == "the same multipruner recover again"
