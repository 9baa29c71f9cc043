"""Trainings: what they compute and measure, and that they go on as if they had not stopped."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from pruning.costs.accounting import Accounting
from pruning.export.transformers import pruned_model
from pruning.recovery.adapters import read_adapters
from pruning.recovery.flops import training_flops
from pruning.recovery.prepared import merge_adapters
from pruning.recovery.training import Recovery, positions
from pruning.scoring.nll import sequence_nll
from tests.conftest import tiny_config
from tests.pruning.recovery.recoveries import NARROW, SETTINGS, changed, dense_model, recovery_of


@pytest.mark.parametrize("rank", [4, None])
@pytest.mark.parametrize("loss", ["kl", "nll"])
def test_training_lowers_its_loss(loss: str, rank: int | None) -> None:
    recovery = recovery_of(
        dense_model(), loss=loss, rank=rank, steps=30, batch_size=10, dropout=0.0
    )
    losses = [update.loss for step in range(1, 31) if (update := recovery.update(step))]
    assert len(losses) == 30
    assert losses[-1] < 0.8 * losses[0]
    if loss == "nll":
        nll = sequence_nll(recovery.model, torch.tensor(recovery.text.input_ids)).sum()
        assert float(nll) / (10 * 23) < losses[0]


@pytest.mark.parametrize("rank", [1, None])
@pytest.mark.parametrize("loss", ["kl", "nll"])
def test_flops_against_torch(loss: str, rank: int | None) -> None:
    """Torch's own counter sees adapters as well, and that nothing goes back below the first layer,
    which is much of four.
    """
    recovery = recovery_of(dense_model(), loss=loss, steps=3, rank=rank, checkpoint_every=2)
    with FlopCounterMode(display=False) as counter:
        recovery.dense_nll()
        recovery.heldout_nll()
        for step in (1, 2, 3):
            recovery.update(step)
            if step > 1:
                recovery.heldout_nll()
    said = training_flops(
        Accounting(tiny_config("llama")),
        NARROW,
        recovery.settings,
        sequence_length=24,
        num_heldout_sequences=5,
    )
    assert said is not None
    assert 1 < said / counter.get_total_flops() < 1.1


def test_gradients_of_parts_add_up() -> None:
    """All sequences together or one by one."""
    whole, parts = (
        recovery_of(dense_model(), dropout=0.0, micro_batch_size=size) for size in (4, 1)
    )
    first, second = whole.update(1), parts.update(1)
    assert first is not None
    assert second is not None
    assert first.loss == pytest.approx(second.loss, rel=1e-5)
    assert first.grad_norm == pytest.approx(second.grad_norm, rel=1e-4)


@pytest.mark.parametrize("rank", [4, None])
def test_held_out_nll_is_that_of_the_merged_model(rank: int | None, tmp_path: Path) -> None:
    """In bfloat16 a change below the rounding of the weights is lost, and must not count; whole
    matrices are trained as they are rounded.
    """
    dense, other = dense_model(), dense_model()
    for each in (dense, other):
        each.model.to(torch.bfloat16)
    recovery = recovery_of(dense, rank=rank)
    before = {name: weight.clone() for name, weight in recovery.model.state_dict().items()}
    changed(recovery)
    found, beside = recovery.heldout_nll(), recovery._nll(recovery.model)
    recovery.save(tmp_path / "adapters", 1)
    merge_adapters(other, read_adapters(tmp_path / "adapters"))
    ids = torch.tensor(recovery.heldout.input_ids)
    stored = float(sequence_nll(pruned_model(other, NARROW), ids).sum()) / (5 * 23)
    assert found == pytest.approx(stored, rel=1e-6)
    assert (beside == pytest.approx(stored, rel=1e-6)) == (rank is None)
    left = recovery.model.state_dict()
    assert all(
        torch.equal(left[name], weight)
        for name, weight in before.items()
        if "lora" not in name and not name.endswith("difference")
    )
    recovery.update(1)
    assert all(weight.grad is not None for weight in recovery.parameters.values())


def test_no_dropout_but_that_of_the_adapters() -> None:
    """A model whose configuration has dropout of its own is trained without it."""

    def losses(own: float, adapters: float) -> list[float]:
        recovery = recovery_of(dense_model(), dropout=adapters)
        of_model = [each for each in recovery.model.modules() if hasattr(each, "attention_dropout")]
        assert of_model
        for each in of_model:
            each.attention_dropout = own  # type: ignore[assignment]
        return [update.loss for step in (1, 2, 3) if (update := recovery.update(step))]

    plain = losses(0.0, 0.0)
    assert len(plain) == 3
    assert losses(0.9, 0.0) == plain
    assert losses(0.0, 0.9) != plain


def test_held_out_nll_is_per_token_and_without_dropout() -> None:
    recovery = recovery_of(dense_model(), dropout=0.5)
    recovery.update(1)
    found = recovery.heldout_nll()
    pruned = sequence_nll(recovery.model.eval(), torch.tensor(recovery.heldout.input_ids)).sum()
    assert found == pytest.approx(float(pruned) / (5 * 23), rel=1e-6)


def curve(recovery: Recovery, steps: range) -> list[tuple[float, float]]:
    found = [recovery.update(step) for step in steps]
    return [(update.loss, update.grad_norm) for update in found if update is not None]


@pytest.mark.parametrize("rank", [4, None])
def test_a_training_goes_on_bit_by_bit(rank: int | None, tmp_path: Path) -> None:
    """With dropout, over the end of the text, in another model object."""
    undisturbed = recovery_of(dense_model(), rank=rank)
    wanted = curve(undisturbed, range(1, 9))
    stopped = recovery_of(dense_model(), rank=rank)
    first = curve(stopped, range(1, 5))
    stopped.save(tmp_path / "4", 4)
    resumed = recovery_of(dense_model(), rank=rank)
    assert resumed.load(tmp_path / "4") == 4
    torch.manual_seed(99)  # whatever a program does in between
    assert first + curve(resumed, range(5, 9)) == wanted
    undisturbed.save(tmp_path / "a", 8)
    resumed.save(tmp_path / "b", 8)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(load_file(tmp_path / "a")) == 3 * len(resumed.parameters)


def test_the_random_numbers_of_the_program_are_left_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    dense = dense_model()
    torch.manual_seed(5)
    recovery = recovery_of(dense)
    recovery.update(1)
    assert torch.equal(torch.rand(3), wanted)


def test_what_is_not_finite_changes_nothing() -> None:
    recovery = recovery_of(dense_model())
    recovery.update(1)
    before = {name: weight.detach().clone() for name, weight in recovery.parameters.items()}
    with torch.no_grad():
        recovery.dense.lm_head.weight[3, 3] = math.nan
    assert recovery.update(2) is None
    assert all(torch.equal(before[name], weight) for name, weight in recovery.parameters.items())


def test_each_sequence_comes_once_before_any_comes_again() -> None:
    seen = [place for step in range(1, 6) for place in positions(step, SETTINGS, 10)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    other = replace(SETTINGS, seed=8)
    assert [place for step in range(1, 6) for place in positions(step, other, 10)] != seen


def test_learning_rates_rise_and_fall() -> None:
    rates = [SETTINGS.rate_at(step) for step in range(1, 13)]
    assert rates[:3] == [0.005, 0.01, pytest.approx(0.01 * 10 / 11)]
    assert rates[-1] == pytest.approx(0.01 / 11)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert replace(SETTINGS, warmup_steps=0).rate_at(1) == pytest.approx(0.01 * 12 / 13)


def test_every_part_of_every_update_drops_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first drops is what it dropped before there were parts, so that a recovery of then
    can go on.
    """
    drawn: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", drawn.append)
    recovery = recovery_of(dense_model(), batch_size=4, micro_batch_size=1, dropout=0.1)
    drawn.clear()
    for step in (1, 2):
        assert recovery.update(step) is not None
    assert len(set(drawn)) == len(drawn) == 8
    seeds = np.random.default_rng([SETTINGS.seed, 2])
    assert drawn[4] == int(seeds.integers(2**32))
