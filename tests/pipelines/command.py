"""A command, run in this process: an import of torch, Ray and MLflow costs more than most tests."""

from __future__ import annotations

import io
import json
import runpy
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tests.tiny_search import places


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Args:
        folder: its `output_dir`.
    """

    status: int
    output: str
    folder: Path

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error: ")]

    def read(self, name: str) -> Any:
        """A JSON file of the folder."""
        return json.loads((self.folder / name).read_text())

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = self.read("summary.json")
        return found

    @property
    def evaluation(self) -> dict[str, Any]:
        found: dict[str, Any] = self.read("evaluation.json")
        return found

    @property
    def trajectory(self) -> list[str]:
        """Lines of the journal without their times."""
        return without_times(self.folder / "trajectory.jsonl")


def without_times(path: Path) -> list[str]:
    lines = []
    for text in path.read_text().splitlines():
        line = json.loads(text)
        assert line.pop("seconds") >= 0
        assert line.pop("timestamp") > 1.7e9
        lines.append(json.dumps(line))
    return lines


def run_command(command: str, *words: object) -> Outcome:
    """As `python -m pipelines.COMMAND WORDS`."""
    given = [str(word) for word in words]
    folders = [word.partition("=")[2] for word in given if word.startswith("output_dir=")]
    status: Any = 0
    with mock.patch.object(sys, "argv", [command, *given]), redirect_stdout(io.StringIO()) as said:
        try:
            runpy.run_module(f"pipelines.{command}", run_name="__main__")
        except SystemExit as stop:
            status = stop.code
    return Outcome(int(status or 0), said.getvalue(), Path(folders[-1] if folders else ""))


def searched(folder: Path, *words: object) -> Outcome:
    """A search that ended, in `folder`/run, with its store and MLflow in `folder`."""
    outcome = run_command("prune", *words, *places(folder), f"output_dir={folder}/run")
    assert outcome.status == 0, outcome.output
    return outcome
