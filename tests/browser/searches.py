"""Searches whose pages are looked at."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.pipelines.command import run_command
from tests.tiny_search import places, tiny_search


@dataclass(frozen=True)
class Search:
    """A search that has ended: where it wrote, and what."""

    run_name: str
    tracking_uri: str
    printed_path: str
    summary: dict[str, Any]
    steps: list[dict[str, Any]]

    @property
    def ratios(self) -> list[float]:
        return [0.0, *(step["ratio"] for step in self.steps)]

    @property
    def perplexities(self) -> list[float]:
        return [
            self.summary["perplexity"]["block"]["dense"],
            *(step["perplexity"] for step in self.steps),
        ]


def run_search(
    folder: Path,
    checkpoint_folder: Path,
    token_file: Path,
    name: str,
    run_name: str,
    *settings: str,
) -> Search:
    output = run_job("prune", folder, checkpoint_folder, token_file, name, *settings)
    return read_search(
        folder / name, run_name, f"sqlite:///{folder}/mlflow.db", printed_link(output)
    )


def run_job(
    job: str, folder: Path, checkpoint_folder: Path, token_file: Path, name: str, *settings: str
) -> str:
    """What it printed."""
    options = [
        *tiny_search(checkpoint_folder, token_file, "calibration.num_width_samples=8", *settings),
        *places(folder),
        f"output_dir={folder}/{name}",
    ]
    outcome = run_command(job, *options)
    assert outcome.status == 0, outcome.output
    return outcome.output


def read_search(folder: Path, run_name: str, tracking_uri: str, printed_path: str) -> Search:
    steps = [json.loads(line) for line in (folder / "trajectory.jsonl").read_text().splitlines()]
    return Search(
        run_name,
        tracking_uri,
        printed_path,
        json.loads((folder / "summary.json").read_text()),
        steps,
    )


def printed_link(output: str) -> str:
    """The last one, without its server."""
    printed = re.findall(r"http://127\.0\.0\.1:5000(/\S+)", output)
    assert printed, output
    return str(printed[-1])
