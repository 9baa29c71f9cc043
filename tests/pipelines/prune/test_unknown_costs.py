"""A number that is not known is called so in every place, and is null in every file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import tiny_config, tiny_model
from tests.pipelines.conftest import Cli, Search
from tests.tiny_sizes import LATENT


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Latent attention, whose FLOPs are not known."""
    folder = tmp_path / "latent"
    tiny_model(tiny_config("deepseek_v3", **LATENT)).save_pretrained(folder)
    return folder


def test_flops_of_latent_attention(model: Path, search: Search, cli: Cli, tmp_path: Path) -> None:
    options = (f"model.path={model}", "search.distribution=[100,0,0]")
    planned = cli("plan", *options, "calibration=alpaca", "tflops_per_evaluator=1")
    assert planned.status == 0, planned.output
    assert planned.output.count("not known") == 2
    assert (planned.read("plan.json")["flops"], planned.read("plan.json")["hours"]) == (None, None)
    swept = cli(
        "plan", *options, "calibration=alpaca", "grid={search.target_ratio:[0.1,0.2]}", folder="all"
    )
    assert swept.read("plan.json")["flops"] is None
    outcome = search(*options)
    assert outcome.status == 0, outcome.output
    summary = outcome.summary
    [row] = [line for line in outcome.output.splitlines() if "FLOPs per token" in line]
    assert row.count("not known") == 2
    assert summary["flops_per_token"] == {"dense": None, "pruned": None}
    assert (summary["plan"]["flops"], summary["taken"]["flops"]) == (None, None)
    assert summary["kv_cache_bytes_per_token"]["dense"] == 4 * (16 + 4) * 4
    lines = (outcome.folder / "trajectory.jsonl").read_text().splitlines()
    assert {json.loads(line)["flops_per_token"] for line in lines} == {None}
    exported = cli("export", f"run={outcome.folder}", folder="out")
    assert exported.status == 0, exported.output
    assert (
        "| FLOPs per token | not known | not known |" in (exported.folder / "README.md").read_text()
    )
    report = cli("report", f"runs=[{outcome.folder}]", folder="report")
    assert report.status == 0, report.output
    assert "not known" in (report.folder / "report.html").read_text()
    refused = cli("plan", *options, "calibration=alpaca", f"rate_of={outcome.folder}")
    assert refused.status == 2
    assert "the FLOPs of its model (deepseek_v3) are not known" in refused.output
