"""Shapes whose layers are all alike: plain checkpoints, which stock software opens without code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.export.plain import plain_config
from pruning.export.source import ExportSource
from pruning.export.transformers import layers_of, pruned_config, write
from pruning.export.verify_transformers import probe_tokens
from pruning.models.families import FAMILIES
from pruning.models.loaded_model import LoadedModel
from pruning.shape import ModelShape
from tests.conftest import tiny_config, tiny_model
from tests.pruning.export.sources import masked_logits

ALIKE = {
    "one width": "3x24*4",
    "fewer layers": "3x48 0x0 3x48 3x48",
    "fewer KV heads": "2x48*4",
    "all at once": "2x24 0x0 2x24*2",
    "halves that pair": "3x0 0x48 3x48*2",
}
DERIVES_HEAD_SIZE = {"qwen2", "olmo2", "phi3"}
"""Their configurations have no head size of their own."""
DIFFERENT = ("3x24 3x48*3", "3x0 3x48*3", "3x48*3 2x48", "0x48*4", "3x0*4")


def exported(folder: Path, model_type: str, shape: str) -> tuple[ExportSource, torch.Tensor]:
    dense = LoadedModel.of(tiny_model(tiny_config(model_type)))
    source = ExportSource(dense, ModelShape.parse(shape), folder, torch.float32)
    ids = probe_tokens(128, 256)
    logits = masked_logits(source, ids)
    write(folder, source)
    return source, logits


@pytest.mark.parametrize("shape", ALIKE.values(), ids=ALIKE)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_it_is_of_the_family_itself(tmp_path: Path, model_type: str, shape: str) -> None:
    source, logits = exported(tmp_path, model_type, shape)
    if shape.startswith("2x") and model_type in DERIVES_HEAD_SIZE:
        assert list(tmp_path.glob("*.py")), "another head size for whoever opens it"
        return
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    assert type(model) is type(source.dense.model)
    with torch.inference_mode():
        difference = (model.eval()(probe_tokens(128, 256)).logits - logits).abs().max()
    assert difference <= 1e-5 * max(1.0, logits.abs().max())


@pytest.mark.parametrize("shape", DIFFERENT)
def test_layers_that_differ_or_lack_a_block_need_code(shape: str) -> None:
    config = tiny_config("llama")
    dense = LoadedModel.of(tiny_model(config))
    layers = layers_of(ModelShape.parse(shape), dense.family)
    pruned = pruned_config(config, dense.family, dense.geometry, layers)
    assert plain_config(config, pruned, dense.geometry, layers) is None
