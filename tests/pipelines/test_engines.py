"""What an engine of our own is given: folders, sizes, and for how long."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines import engines
from pipelines.engines import EngineModel, remove_leftovers, runs_in_engine
from pruning.costs.accounting import Accounting
from pruning.costs.engine_speed import EngineRuns
from pruning.costs.speed import SpeedSettings
from pruning.models.checkpoint import Checkpoint

SETTINGS = SpeedSettings(batch_size=3, prompt_tokens=16, new_tokens=4, rounds=2)


def test_vllm_gets_the_family_unless_sizes_are_free(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And room for keys and values of the whole batch."""
    checkpoint, seen, asked = Checkpoint(checkpoint_folder), {}, {}

    def runs(folders: Mapping[str, Path], settings: SpeedSettings, **more: Any) -> EngineRuns:
        asked.update(more, settings=settings)
        for name, folder in folders.items():
            assert folder.is_relative_to(tmp_path)
            seen[name] = json.loads((folder / "config.json").read_text())["model_type"]
        return EngineRuns("vLLM 0.1", "cpu", {})

    monkeypatch.setattr(engines, "vllm_runs", runs)
    dense = Accounting(checkpoint.config()).dense
    found = runs_in_engine(
        "vllm",
        EngineModel(checkpoint, None, "bfloat16", 5),
        {"plain": dense, "free": dense},
        SETTINGS,
        folder=tmp_path,
        as_decilm=["free"],
    )
    assert found.version == "vLLM 0.1"
    assert seen == {"plain": "llama", "free": "nemotron-nas"}
    assert asked == {
        "settings": SETTINGS,
        "vocab_size": 128,
        "num_threads": 5,
        "dtype": "bfloat16",
        "cache_bytes": 3 * (16 + 4) * 4 * 2 * 3 * 8 * 2,  # layers, keys and values, heads, of 8
    }
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".engine-1/blocks-0").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
