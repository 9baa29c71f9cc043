"""Single updates of a training, and when nothing is updated."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from pruning.recovery import training
from pruning.recovery.loss import distillation_kl, next_token_nll
from pruning.recovery.training import positions
from pruning.scoring.nll import sequence_nll
from tests.pruning.recovery.recoveries import HELDOUT, SETTINGS, TEXT, dense_model, recovery_of


@pytest.mark.parametrize(("loss", "rank"), [("nll", 4), ("kl", None)])
def test_updates_are_those_of_adamw_on_the_mean_loss(loss: str, rank: int | None) -> None:
    """Without weight decay; gradients are limited, and each is of its own update alone."""
    changes: dict[str, Any] = {"loss": loss, "rank": rank, "dropout": 0.0, "micro_batch_size": 4}
    limit = 0.01
    found, other = (recovery_of(dense_model(), max_grad_norm=limit, **changes) for _ in range(2))
    weights = list(other.parameters.values())
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
    for step in (1, 2, 3):
        ids = torch.tensor(TEXT.input_ids[positions(step, SETTINGS, 10)])
        total = (
            distillation_kl(other.model, other.dense, ids)
            if loss == "kl"
            else next_token_nll(other.model, ids)
        )
        mean = total / (4 * 23)
        gradients = torch.autograd.grad(mean, weights)
        norm = math.sqrt(sum(float((each**2).sum()) for each in gradients))
        assert norm > limit
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient * limit / norm
        optimizer.param_groups[0]["lr"] = SETTINGS.rate_at(step)
        optimizer.step()
        update = found.update(step)
        assert update is not None
        assert update.learning_rate == SETTINGS.rate_at(step)
        assert update.loss == pytest.approx(float(mean.detach()), rel=1e-5)
        assert update.grad_norm == pytest.approx(norm, rel=1e-3)
        if step == 1:
            for weight, wanted in zip(found.parameters.values(), weights, strict=True):
                torch.testing.assert_close(weight, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("infinite", ["loss", "gradient"])
def test_one_value_that_is_not_finite_is_enough(
    infinite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other may be finite."""

    def loss(model: PreTrainedModel, ids: torch.Tensor) -> Any:
        return next_token_nll(model, ids) + math.inf

    recovery = recovery_of(dense_model(), loss="nll")
    weights = list(recovery.parameters.values())
    before = [weight.detach().clone() for weight in weights]
    if infinite == "loss":
        monkeypatch.setattr(training, "next_token_nll", loss)
    else:
        weights[1].register_hook(lambda gradient: torch.full_like(gradient, math.inf))
    assert recovery.update(1) is None
    for weight, was in zip(weights, before, strict=True):
        assert torch.equal(weight, was)


def test_held_out_nll_drops_nothing_whatever_mode_the_model_is_in() -> None:
    recovery = recovery_of(dense_model())
    for each in recovery.model.modules():
        if hasattr(each, "attention_dropout"):
            each.attention_dropout = 0.9  # type: ignore[assignment]
    wanted = recovery.heldout_nll()
    ids = torch.tensor(HELDOUT.input_ids)
    assert wanted == pytest.approx(float(sequence_nll(recovery.model, ids).sum()) / (5 * 23))
    recovery.model.train()
    assert recovery.heldout_nll() == wanted
