"""KL from the dense model: against whole distributions in float64, and in however little memory."""

from __future__ import annotations

import pytest
import torch

from pruning.models.loaded_model import LoadedModel
from pruning.scoring import kept_bytes as kept_bytes_module
from pruning.scoring.kept_bytes import kept_bytes
from pruning.scoring.kl import DenseOutputs, dense_outputs, divergence
from pruning.scoring.masking import masked
from pruning.scoring.nll import HEAD_CHUNK_TOKENS, run_prefix, score_candidates
from pruning.shape import ModelShape
from tests.conftest import tiny_config, tiny_model, tokens

NARROW = ModelShape.parse("2x32 3x48 0x16 1x40")
SLIGHT = ModelShape.parse("3x48 3x48 3x48 3x47")


def scored(
    loaded: LoadedModel, batch: torch.Tensor, *shapes: ModelShape
) -> tuple[torch.Tensor, torch.Tensor, DenseOutputs]:
    dense = dense_outputs(loaded, batch)
    return (*divergence(loaded, run_prefix(loaded, loaded.geometry.dense, batch), dense, shapes),
            dense)  # fmt: skip


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_whole_distributions_in_float64(model_type: str) -> None:
    """Also of a change so slight that the terms nearly cancel, and of none."""
    loaded = LoadedModel.of(tiny_model(tiny_config(model_type)))
    batch = tokens(3, 24, seed=4)
    dense = loaded.geometry.dense
    found, nll, _ = scored(loaded, batch, NARROW, SLIGHT, dense)
    with torch.inference_mode():
        log_p = loaded.model(batch, use_cache=False).logits[:, :-1].double().log_softmax(-1)
        for row, shape in enumerate((NARROW, SLIGHT, dense)):
            with masked(loaded, shape):
                log_q = loaded.model(batch, use_cache=False).logits[:, :-1].double().log_softmax(-1)
            expected = (log_p.exp() * (log_p - log_q)).sum(dim=(1, 2))
            assert torch.allclose(found[row], expected, rtol=1e-4, atol=1e-4)
    assert found[0].min() > 1
    assert 0.001 < found[1].max() < 1
    prefix = run_prefix(loaded, dense, batch)
    assert torch.equal(nll, score_candidates(loaded, prefix, [NARROW, SLIGHT, dense]))


def test_the_same_bits_where_distributions_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """In several chunks of tokens, of which the last is shorter."""
    loaded = LoadedModel.of(tiny_model(tiny_config("llama")))
    batch = tokens(3, 24, seed=4)
    monkeypatch.setitem(HEAD_CHUNK_TOKENS, "cpu", 16)
    kept, _, outputs = scored(loaded, batch, NARROW, SLIGHT)
    assert outputs.distributions is not None
    assert [len(part.negative_entropy) for part in outputs.distributions] == [16] * 4 + [5]
    monkeypatch.setattr(kept_bytes_module, "KEPT_BYTES", 3 * 24 * 128 * 4 - 1)
    again, _, outputs = scored(loaded, batch, NARROW, SLIGHT)
    assert outputs.distributions is None
    assert torch.equal(kept, again)


def test_what_is_kept() -> None:
    """SmolLM2 at 4 x 128 tokens 101 MB; at 48 x 128, 1.2 GB, nothing. A GB is not too much."""
    assert kept_bytes(512, 49152) == 100_663_296
    assert kept_bytes(48 * 128, 49152) == 0
    assert kept_bytes(1000, 250_000) == 1_000_000_000
    assert kept_bytes(1000, 250_001) == 0


def test_without_candidates_there_is_a_row_for_none() -> None:
    found, nll, _ = scored(LoadedModel.of(tiny_model(tiny_config("llama"))), tokens(3, 24))
    assert found.shape == nll.shape == (0, 3)
    assert found.dtype == nll.dtype == torch.float64
