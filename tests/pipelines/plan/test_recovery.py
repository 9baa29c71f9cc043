"""What a plan says of the training after a search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipelines.conftest import Cli
from tests.pipelines.plan.test_plan import LLAMA_2, SIZES


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2 | SIZES["7B"]))
    return [f"model.path={tmp_path}", "calibration=alpaca", "measure_rate=false"]


def test_a_recovery_is_planned_beside_the_search(cli: Cli, words: list[str]) -> None:
    """300 updates of 8 x 256 tokens, of at most a dense model: `nll` takes two passes forth and
    back of 13.5 GFLOPs a token and more.
    """
    words += ["search.target_ratio=0.2", "tflops_per_evaluator=100", "cluster.num_evaluators=8"]
    alone = cli("plan", *words, folder="alone").read("plan.json")
    outcome = cli("plan", *words, "recovery=lora", "recovery.loss=nll", folder="both")
    both = outcome.read("plan.json")
    recovery = both.pop("recovery")
    assert both == alone, "no number of the search holds it"
    assert (recovery["steps"], recovery["num_tokens"]) == (300, 300 * 8 * 256)
    assert 2 * 13.2e9 * 614_400 < recovery["flops"] < 1.4 * 2 * 13.2e9 * 614_400
    assert recovery["hours"] == pytest.approx(recovery["flops"] / 100e12 / 3600), "one process"
    said = " ".join(outcome.output.replace("│", " ").split())
    assert "recovery after it, at most" in said
    assert "300 updates, 614,400 tokens" in said


def test_a_plan_of_a_sweep_refuses_what_the_sweep_refuses(cli: Cli, words: list[str]) -> None:
    outcome = cli("plan", *words, "search.target_ratio=[0.1,0.2]", "recovery=lora")
    assert outcome.status == 2
    assert "recovery: a sweep trains nothing; recover a point" in outcome.output
