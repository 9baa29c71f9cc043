"""Losses and their gradients against independent computations."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pruning.export.transformers import pruned_model
from pruning.recovery.loss import distillation_kl, next_token_nll
from pruning.scoring.kl import dense_outputs, divergence
from pruning.scoring.nll import HEAD_CHUNK_TOKENS, run_prefix
from tests.conftest import tokens
from tests.pruning.recovery.recoveries import NARROW, changed, dense_model, recovery_of


def test_losses_are_those_that_a_search_scores() -> None:
    dense, ids = dense_model(), tokens()
    pruned = pruned_model(dense, NARROW)
    kl, nll = divergence(
        dense, run_prefix(dense, dense.geometry.dense, ids), dense_outputs(dense, ids), [NARROW]
    )
    assert float(distillation_kl(pruned, dense.model, ids)) == pytest.approx(
        float(kl.sum()), rel=1e-4
    )
    assert float(next_token_nll(pruned, ids)) == pytest.approx(float(nll.sum()), rel=1e-5)
    with torch.no_grad():
        assert abs(float(distillation_kl(dense.model, dense.model, ids))) < 1e-3


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "phi3"])
@pytest.mark.parametrize("loss", ["kl", "nll"])
def test_losses_and_gradients_against_those_of_all_tokens_at_once(
    loss: str, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of 16 of 69 tokens; the last one is smaller."""
    monkeypatch.setitem(HEAD_CHUNK_TOKENS, "cpu", 16)
    recovery, ids = recovery_of(dense_model(model_type), dropout=0.0), tokens()
    changed(recovery)
    model, dense = recovery.model, recovery.dense
    log_q, log_p = (
        functional.log_softmax(each(ids, use_cache=False).logits[:, :-1].float(), dim=-1)
        for each in (model, dense)
    )
    wanted = (
        functional.kl_div(log_q, log_p.detach(), log_target=True, reduction="sum")
        if loss == "kl"
        else functional.nll_loss(log_q.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    )
    found = distillation_kl(model, dense, ids) if loss == "kl" else next_token_nll(model, ids)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    weights = list(recovery.parameters.values())
    gradients = [torch.autograd.grad(each / 69, weights) for each in (found, wanted)]
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in gradients[0])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", ["kl", "nll"])
def test_losses_are_summed_in_float32(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model in bfloat16, in many chunks: bfloat16 would lose all but two digits."""
    monkeypatch.setitem(HEAD_CHUNK_TOKENS, "cpu", 2)
    dense, ids = dense_model(), tokens()
    dense.model.to(torch.bfloat16)
    pruned = pruned_model(dense, NARROW)
    with torch.no_grad():
        log_q, log_p = (
            each(ids, use_cache=False).logits[:, :-1].double().log_softmax(dim=-1)
            for each in (pruned, dense.model)
        )
    wanted = (
        (log_p.exp() * (log_p - log_q)).sum()
        if loss == "kl"
        else -log_q.gather(2, ids[:, 1:, None]).sum()
    )
    found = (
        distillation_kl(pruned, dense.model, ids) if loss == "kl" else next_token_nll(pruned, ids)
    )
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(wanted), rel=1e-4)
