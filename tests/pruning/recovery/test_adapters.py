"""Adapters and whole matrices on every family: they start as nothing, and what is merged is what
was trained.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pruning.errors import InputError
from pruning.export.transformers import pruned_model
from pruning.importance.channel_order import (
    ChannelOrder,
    CompensationSource,
    RecoverySource,
    channel_order,
)
from pruning.models.families import FAMILIES
from pruning.models.loaded_model import LoadedModel
from pruning.recovery.adapters import (
    adapter_fingerprint,
    matrices_of,
    read_adapters,
    write_adapters,
)
from pruning.recovery.prepared import prepared
from pruning.scoring.masking import masked
from pruning.shape import ModelShape
from tests.conftest import tiny_config, tiny_model, tokens
from tests.pruning.recovery.recoveries import (
    NARROW,
    TOLERANCE,
    changed,
    dense_model,
    logits,
    recovery_of,
)


def recovered(model_type: str, path: Path, order: ChannelOrder | None = None) -> LoadedModel:
    """A dense model as stored, prepared with the adapters in a file."""
    dense = LoadedModel.of(tiny_model(tiny_config(model_type)))
    order = order or channel_order(dense, "l1")
    source = RecoverySource(str(path), adapter_fingerprint(path))
    return prepared(dense, replace(order, recovery=source))


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert float((found - wanted).abs().max() / wanted.abs().max()) < TOLERANCE


@pytest.mark.parametrize("rank", [4, None])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_merged_is_what_was_trained(model_type: str, rank: int | None, tmp_path: Path) -> None:
    """As a smaller model, and as a mask on the dense one, which exports are compared with."""
    ids = tokens()
    recovery = recovery_of(dense_model(model_type), rank=rank)
    before = logits(recovery.model, ids)
    changed(recovery)
    trained = logits(recovery.model, ids)
    assert float((trained - before).abs().max() / before.abs().max()) > 0.1, "adapters do nothing"
    recovery.save(tmp_path / "adapters", 0)
    dense = recovered(model_type, tmp_path / "adapters")
    with masked(dense, NARROW):
        assert_same(logits(dense.model, ids), trained)
    assert_same(logits(pruned_model(dense, NARROW), ids), trained)


@pytest.mark.parametrize("rank", [4, None])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_training_starts_from_nothing_and_leaves_the_dense_model_alone(
    model_type: str, rank: int | None
) -> None:
    ids, dense = tokens(), dense_model(model_type)
    before, pruned = logits(dense.model, ids), logits(pruned_model(dense, NARROW), ids)
    recovery = recovery_of(dense, rank=rank)
    assert torch.equal(logits(recovery.model, ids), pruned)
    changed(recovery)
    assert torch.equal(logits(dense.model, ids), before)


@pytest.mark.parametrize("rank", [4, None])
def test_every_matrix_of_a_block_that_is_left_is_trained(rank: int | None) -> None:
    recovery = recovery_of(dense_model(), rank=rank)
    recovery.update(1)
    assert all(weight.grad is not None for weight in recovery.parameters.values())
    trained = [weight for weight in recovery.model.parameters() if weight.requires_grad]
    assert len(trained) == len(recovery.parameters), "and nothing else"
    names = {name.rpartition(".")[0] for name in recovery.parameters}
    attention = [f"self_attn.{side}_proj" for side in "qkvo"]
    mlp = [f"mlp.{side}_proj" for side in ("gate", "up", "down")]
    expected = {f"{layer}.{name}" for layer in (0, 1, 3) for name in attention}
    assert names == expected | {f"{layer}.{name}" for layer in (0, 2, 3) for name in mlp}


def test_models_of_other_architectures_are_trained_too(tmp_path: Path) -> None:
    shape, ids = ModelShape.parse("3x48 3x0 0x48 3x48"), tokens()
    recovery = recovery_of(dense_model("starcoder2"), shape)
    changed(recovery)
    recovery.save(tmp_path / "adapters", 0)
    dense = recovered("starcoder2", tmp_path / "adapters")
    assert_same(logits(pruned_model(dense, shape), ids), logits(recovery.model, ids))


@pytest.mark.parametrize("rank", [4, None])
def test_what_is_kept_is_without_what_its_training_needs(rank: int | None, tmp_path: Path) -> None:
    checkpoint, kept = tmp_path / "checkpoint", tmp_path / "adapters"
    recovery = recovery_of(dense_model(), rank=rank)
    recovery.update(1)
    recovery.save(checkpoint, 1)
    write_adapters(checkpoint, kept)
    trained, found = read_adapters(checkpoint), read_adapters(kept)
    scale = 8 / 4 if rank else 1
    assert (found.shape, found.scale) == (trained.shape, trained.scale) == (NARROW.text, scale)
    with safe_open(kept, framework="pt") as file:
        assert set(file.keys()) == set(recovery.parameters), "no moments"
        said = json.loads(file.metadata()["recovery"])
    assert said == {"shape": NARROW.text, "scale": scale}, "no step"
    assert bool(found.pairs) != bool(found.differences)
    kept_by_key = dict(found.added())
    for key, added in trained.added():
        assert torch.equal(kept_by_key.pop(key), added)
        assert added.any(), "an update was made"
    assert not kept_by_key


def test_another_file_of_adapters_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapters"
    recovery = recovery_of(dense_model())
    recovery.save(path, 0)
    fingerprint = adapter_fingerprint(path)
    assert fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    assert read_adapters(path, fingerprint=fingerprint).shape == NARROW.text
    changed(recovery)
    recovery.save(path, 0)
    said = r"adapters has changed since the recovery ended"
    with pytest.raises(InputError, match=said):
        read_adapters(path, fingerprint=fingerprint)
    dense = dense_model()
    order = replace(channel_order(dense, "l1"), recovery=RecoverySource(str(path), fingerprint))
    with pytest.raises(InputError, match=said):
        prepared(dense, order)
    path.unlink()
    with pytest.raises(InputError, match=r"adapters is not there; every machine"):
        read_adapters(path, fingerprint=fingerprint)


def test_statistics_that_an_order_compensates_from_must_be_there(tmp_path: Path) -> None:
    dense = LoadedModel.of(tiny_model(tiny_config("llama")))
    source = CompensationSource(str(tmp_path / "statistics"), "0" * 32, 0.01)
    order = replace(channel_order(dense, "l1"), compensation=source)
    with pytest.raises(InputError, match="statistics that this model is compensated with"):
        prepared(dense, order)


def test_a_model_without_linear_layers_in_its_blocks_has_nothing_to_train() -> None:
    """GPT-2 has convolutions of width 1 in their place."""
    sizes: dict[str, object] = {
        "n_embd": 48,
        "n_layer": 4,
        "n_head": 6,
        "n_inner": 48,
        "num_key_value_heads": 6,
    }
    dense = LoadedModel.of(tiny_model(tiny_config("gpt2", **sizes)))
    with pytest.raises(InputError, match="architecture 'gpt2' have no linear layers"):
        matrices_of(dense.model, dense.family, [(layer, layer) for layer in range(4)])


def test_the_fingerprint_of_an_order_tells_recoveries_apart() -> None:
    order = channel_order(dense_model(), "l1")
    found = {
        replace(order, recovery=source).fingerprint
        for source in (None, RecoverySource("a", "1"), RecoverySource("a", "2"))
    }
    assert len(found) == 3
    moved = replace(order, recovery=RecoverySource("b", "1"))
    assert moved.fingerprint in found, "where it lies does not count"
