"""Costs of shapes, of sizes by hand: 2 layers of 4 KV heads and 10 channels each.

A KV head takes 7 parameters with it, 5 in matrices and 2 in biases, and an MLP channel 3. What a
block has besides stays while a part of it does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import LlamaConfig

from pruning.costs import accounting as module
from pruning.costs.accounting import Accounting
from pruning.costs.sizes import AttentionReads, BlockSizes, DenseSizes
from pruning.models.families import FAMILIES
from pruning.models.geometry import Geometry
from pruning.shape import ModelShape

ATTENTION = BlockSizes(40, 24, per_unit=7, weights_per_unit=5, bias_per_unit=2, norms=6)
MLP = BlockSizes(35, 33, per_unit=3, weights_per_unit=3, bias_per_unit=1, norms=8)
FULL, WINDOW = AttentionReads(16, 12, None), AttentionReads(16, 12, 9)
SIZES = DenseSizes(
    FAMILIES["llama"],
    Geometry(2, 4, 1, 2, 10),
    hidden_size=8,
    num_parameters=1000,
    head_weights=100,
    attention=(ATTENTION, ATTENTION),
    mlp=(MLP, MLP),
    reads=(FULL, WINDOW),
)
DENSE = ModelShape.parse("4x10*2")
SHAPE = ModelShape.parse("3x10 0x4")


@pytest.mark.parametrize(
    ("shape", "with_norms", "stored"),
    [
        ("4x10*2", 1000, 1000),
        ("3x10 4x10", 1000 - 7, 1000 - 7),
        ("1x10 4x10", 1000 - 3 * 7, 1000 - 3 * 7),
        ("4x10 4x4", 1000 - 6 * 3, 1000 - 6 * 3),
        ("4x1 4x10", 1000 - 9 * 3, 1000 - 9 * 3),
        ("0x10 4x10", 1000 - 40, 1000 - 40 - 6),
        ("4x0 4x10", 1000 - 35, 1000 - 35 - 8),
        ("3x10 0x4", 1000 - 7 - 40 - 18, 1000 - 7 - 40 - 18 - 6),
        ("0x0*2", 1000 - 2 * 75, 1000 - 2 * 75 - 2 * 14),
    ],
)
def test_parameters(shape: str, with_norms: int, stored: int) -> None:
    accounting, parsed = Accounting(SIZES), ModelShape.parse(shape)
    assert accounting.num_parameters(parsed) == with_norms
    assert accounting.num_stored_parameters(parsed) == stored
    assert accounting.ratio(parsed) == pytest.approx(1 - with_norms / 1000)
    assert accounting.num_block_parameters(parsed) == with_norms - 850


def test_biases_of_removed_heads_count_where_they_stay() -> None:
    """Of q, k and v alone, and none of the MLP."""
    kept = Accounting(SIZES, keep_qkv_bias=True)
    assert kept.num_parameters(DENSE) == 1000
    assert kept.num_parameters(SHAPE) == Accounting(SIZES).num_parameters(SHAPE) + (1 + 4) * 2


def test_flops_of_a_token() -> None:
    """Two for each weight that it meets, and for each product with a key or value the context at
    half its length, or in the window.
    """
    accounting = Accounting(SIZES)
    head, layer = 2 * 100, 2 * (24 + 33)
    for context, full, window in ((30, 30, 18), (18, 18, 18), (10, 10, 10)):
        reads = 16 * full + 16 * window
        found = accounting.flops_per_token(DENSE, context_length=context)
        assert found == head + 2 * layer + reads
        first = 2 * (24 - 5) + 2 * 33 + 12 * full
        second = 2 * (33 - 6 * 3)
        assert accounting.flops_per_token(SHAPE, context_length=context) == head + first + second
    without_mlp = ModelShape.parse("4x0 4x10")
    assert accounting.flops_per_token(without_mlp, context_length=10) == (
        head + 2 * layer + 2 * 16 * 10 - 2 * 33
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"head_weights": None},
        {"attention": (ATTENTION, replace(ATTENTION, weights=None))},
        {"mlp": (replace(MLP, weights=None), MLP)},
        {"reads": (FULL, AttentionReads(None, 12, None))},
    ],
    ids=["head", "attention", "MLP", "reads"],
)
def test_flops_that_are_not_known(changes: dict[str, Any]) -> None:
    accounting = Accounting(replace(SIZES, **changes))
    assert accounting.flops_per_token(DENSE, context_length=10) is None


def test_bytes_of_the_cache() -> None:
    accounting = Accounting(SIZES)
    assert accounting.kv_cache_bytes_per_token(DENSE, bytes_per_value=2) == 2 * (12 + 12)
    assert accounting.kv_cache_bytes_per_token(SHAPE, bytes_per_value=4) == 4 * 9
    for context, in_window in ((20, 9), (9, 9), (5, 5)):
        whole = accounting.kv_cache_bytes(DENSE, context_length=context, bytes_per_value=2)
        assert whole == 2 * (12 * context + 12 * in_window)
        narrow = ModelShape.parse("3x10 1x10")
        found = accounting.kv_cache_bytes(narrow, context_length=context, bytes_per_value=4)
        assert found == 4 * (9 * context + 3 * in_window)


def test_a_cache_that_is_not_known() -> None:
    unknown = Accounting(replace(SIZES, reads=(FULL, AttentionReads(None, None, None))))
    assert unknown.kv_cache_bytes_per_token(DENSE, bytes_per_value=2) is None
    assert unknown.kv_cache_bytes(DENSE, context_length=20, bytes_per_value=2) is None


def test_a_model_is_trusted_as_far_as_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    trusted = []

    def count(_: LlamaConfig, *, trust_remote_code: bool) -> DenseSizes:
        trusted.append(trust_remote_code)
        return SIZES

    monkeypatch.setattr(module, "dense_sizes", count)
    assert Accounting(LlamaConfig()).num_dense_parameters == 1000
    Accounting(LlamaConfig(), trust_remote_code=True)
    assert trusted == [False, True]
