"""The rate of an evaluator: what runs, and what is made of the times. Times are never asserted."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from pruning.costs.accounting import Accounting
from pruning.models.families import FAMILIES
from pruning.scoring.nll import sequence_nll
from tests.conftest import tiny_config, tokens
from workers.evaluators.rate import MeasuredRate, measure_rate, one_layer_model, parts_of

LLAMA = tiny_config("llama")
ACCOUNTING = Accounting(LLAMA)


def clock_of(step: float) -> Callable[[], float]:
    """Says a time that is later by `step` seconds each time."""
    return itertools.count(0.0, step).__next__


def measured(clock: Callable[[], float]) -> MeasuredRate:
    return measure_rate(
        LLAMA,
        ACCOUNTING,
        "float32",
        num_threads=1,
        num_gpus=0,
        batch_size=3,
        sequence_length=48,
        clock=clock,
    )


def test_flops_over_seconds() -> None:
    """Every run takes the same by this clock, with and without the head: so does half a model."""
    found = measured(clock_of(0.01))
    assert (found.num_sequences, found.sequence_length) == (3, 48)
    layer = ACCOUNTING.layer_flops(2, ACCOUNTING.dense.layers[2], context_length=48)
    assert layer is not None
    flops = 3 * 48 * (2.5 * layer + 2 * 48 * 128)
    assert found.tflops == pytest.approx(flops / (2.5 * 0.01 * 1e12))
    assert 4.9 < found.seconds < 5.1


def test_a_slow_machine_runs_a_part_of_the_batch() -> None:
    """What would take too long is not begun."""
    found = measured(clock_of(2.0))
    assert (found.num_sequences, found.sequence_length) == (1, 32)
    assert found.seconds == 10
    found = measured(clock_of(0.4))
    assert (found.num_sequences, found.sequence_length) == (1, 48)
    assert found.seconds < 5.5


def test_the_first_run_is_not_counted() -> None:
    """A device sets itself up in it."""
    late = itertools.chain([0.0, 100.0, 200.0], itertools.count(200.0, 0.01))
    assert measured(late.__next__).tflops == pytest.approx(measured(clock_of(0.01)).tflops)


@pytest.mark.parametrize(
    ("batch_size", "sequence_length", "parts"),
    [
        (1, 16, [(1, 16)]),
        (3, 100, [(1, 32), (1, 64), (1, 100), (2, 100), (3, 100)]),
        (4, 32, [(1, 32), (2, 32), (4, 32)]),
    ],
)
def test_parts_of_a_batch(
    batch_size: int, sequence_length: int, parts: list[tuple[int, int]]
) -> None:
    assert list(parts_of(batch_size, sequence_length)) == parts


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_one_layer_of_every_family_runs(model_type: str) -> None:
    config = tiny_config(model_type)
    model = one_layer_model(config, 2, "bfloat16", torch.device("cpu"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert sequence_nll(model, tokens(2, 24)).isfinite().all()
    accounting = Accounting(config)
    whole, head = accounting.num_dense_parameters, accounting.head_weights
    count = sum(parameter.numel() for parameter in model.parameters())
    assert head is not None
    assert head + (whole - 2 * head) / 4 <= count < head + whole / 4 + 200


def test_threads_are_those_of_the_evaluator_and_then_those_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    measured(clock_of(2.0))
    assert set_to == [1, 7]
