"""Commands on a disk that is full before they write their first byte."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli

COST = ("evaluation=none", "evaluation.cost=true", "evaluation.cost_rounds=1")
FULL = "No space left on device"


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "full").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("command", ["prune", "plan", "sweep", "evaluate", "export", "report"])
def test_a_full_disk(
    cli: Cli,
    arguments: list[str],
    ended: Outcome,
    small_disk: Path,
    command: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One error, which names the file, and no command for going on with what is not there."""
    words = {
        "prune": arguments,
        "plan": arguments,
        "sweep": [*arguments, "search.target_ratio=[0.1,0.2]"],
        "evaluate": [f"run={ended.folder}", *COST],
        "export": [f"run={ended.folder}"],
        "report": [str(ended.folder), "log_to_mlflow=false"],
    }[command]
    fill(small_disk)
    outcome = cli(command, *words, f"output_dir={small_disk}/run")
    [error] = outcome.errors
    if command == "export":  # asks for the room first
        assert outcome.status == 2
        assert "give a folder on another disk" in error
    else:
        assert outcome.status == 1
        assert FULL in error
        name = {"plan": "plan.json", "report": "report.html"}.get(command, "run.json")
        assert error.endswith(f"'{small_disk}/run/{name}'")
        assert outcome.output.splitlines()[-1].endswith(
            f"To go on: the same command with output_dir={small_disk}/run"
        )
    said = outcome.output + "".join(capfd.readouterr())
    assert "Traceback" not in said


def test_a_run_whose_disk_is_full(
    cli: Cli,
    arguments: list[str],
    ended: Outcome,
    small_disk: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """There already, so that the log file is the first that cannot be written: one line instead
    of a traceback for each.
    """
    folder = small_disk / "run"
    folder.mkdir()
    for name in ("run.json", "config.yaml"):
        shutil.copy(ended.folder / name, folder)
    fill(small_disk)
    outcome = cli("prune", *arguments, f"output_dir={folder}")
    assert outcome.status == 1
    [error] = outcome.errors
    assert FULL in error
    assert f"To go on: multipruner prune resume=true output_dir={folder}" in outcome.output
    said = outcome.output + "".join(capfd.readouterr())
    assert said.count(f"prune.log: {FULL}; log lines are here only") == 1
    assert "Traceback" not in said
    assert "Logging error" not in said
