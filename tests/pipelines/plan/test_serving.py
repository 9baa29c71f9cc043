"""What `plan` says of the memory to serve a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli
from tests.pipelines.plan.test_plan import LLAMA_2, SIZES


def test_what_fits_where(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama-2-7B: 6.74 G weights, and 4,096 channels of keys and of values in 32 layers."""
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "7B").mkdir()
    (tmp_path / "7B" / "config.json").write_text(json.dumps(LLAMA_2 | SIZES["7B"]))

    def planned(batch_size: int) -> Outcome:
        words = ("memory.context_length=4096", f"memory.batch_size={batch_size}")
        outcome = cli("plan", "model.path=7B", "calibration=alpaca", *words)
        assert outcome.status == 0, outcome.output
        return outcome

    outcome = planned(2)
    found = outcome.read("plan.json")["memory"]
    weights, cache = 2 * 6_738_415_616, 2 * 4096 * 2 * 32 * 2 * 4096
    assert (found["weights"], found["kv_cache"], found["dtype"]) == (weights, cache, "bfloat16")
    assert list(found["fits"]) == ["8GB", "12GB", "16GB", "24GB"]
    assert found["fits"]["24GB"] == 0
    assert found["fits"]["16GB"] == pytest.approx((weights + cache - 16e9) / weights)
    assert "fits in 16GB" in outcome.output
    assert f"less {found['fits']['16GB']:.4f}" in outcome.output
    crowded = planned(64).read("plan.json")["memory"]["fits"]
    assert crowded["96GB"] is None, "the cache alone is larger"
    assert crowded["192GB"] == 0
