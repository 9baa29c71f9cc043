"""A Baichuan checkpoint goes all the way: pruned, exported, opened by stock transformers.

One with ALiBi is refused before anything starts.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelines.runs.saved_run import read_run
from pruning.export.exported_checkpoint import open_export
from pruning.importance.channel_order import reorder
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from tests.conftest import tokens
from tests.pipelines.conftest import Search
from tests.pruning.models.test_baichuan import CONFIG, save


def test_pruned_and_exported(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "cache"))
    model = save(tmp_path / "tiny-baichuan")
    outcome = search(f"model.path={model}", "search.importance=l1", "export=transformers")
    assert outcome.status == 0, outcome.output
    assert set(outcome.summary["steps"]) == {"block", "mlp_channels", "attention_heads"}
    assert outcome.summary["model"] == "tiny-baichuan"
    run = read_run(str(outcome.folder))
    dense = LoadedModel.of(run.checkpoint.load(dtype="float32"))
    reorder(dense, run.order)
    exported, manifest = open_export(str(outcome.folder / "transformers"))
    assert manifest["verification"]["difference"] < 1e-4, (
        "in a fresh process, with stock transformers"
    )
    with (
        torch.inference_mode(),
        masked(dense, run.shape),
    ):
        torch.testing.assert_close(
            exported.load(dtype="float32")(tokens()).logits,
            dense.model(tokens()).logits,
            atol=1e-4,
            rtol=0,
        )


def test_alibi_is_refused(search: Search, tmp_path: Path) -> None:
    larger = {name: value for name, value in CONFIG.items() if name != "max_position_embeddings"}
    (tmp_path / "larger").mkdir()
    (tmp_path / "larger" / "config.json").write_text(json.dumps(larger))
    outcome = search(f"model.path={tmp_path / 'larger'}")
    assert outcome.status == 2
    [error] = outcome.errors
    assert (
        "is a Baichuan model with ALiBi positions (the 13B ones), which cannot be run here" in error
    )
