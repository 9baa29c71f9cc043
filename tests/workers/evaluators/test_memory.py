"""Memory of evaluators against sums by hand."""

from __future__ import annotations

from torch import nn

from pruning.costs.accounting import Accounting
from pruning.costs.block_times import Levels
from pruning.models.geometry import Geometry
from tests.conftest import tiny_config, tiny_model
from workers.evaluators.memory import (
    compensated_bytes,
    compensation_bytes,
    evaluator_bytes,
    latency_evaluator_bytes,
    shape_evaluator_bytes,
    training_bytes,
)

GEOMETRY = Geometry(num_layers=6, kv_heads=4, queries_per_kv_head=2, head_dim=8, mlp_channels=200)
"""64 channels flow into `o_proj`, 200 into `down_proj`."""
REFITTED = 6 * (64 + 200) * 48 * 2
"""Of both projections of 6 layers with 48 outputs each, in bfloat16."""


def test_what_a_compensated_model_takes() -> None:
    """2 factors are kept, and while a third is made there are its Gram matrix in float32 and in
    float64 and itself: 4.5 float64 matrices of 200 x 200.
    """
    assert compensated_bytes(GEOMETRY, "bfloat16", 48) == REFITTED + 9 * 8 * 200 * 200 // 2


def test_what_scores_with_compensation_take() -> None:
    """Two sizes of every block, where that is more than collecting statistics takes."""
    wide = 10_000
    refitted = REFITTED // 48 * wide
    assert compensation_bytes(GEOMETRY, "bfloat16", wide) == 2 * refitted + 1_440_000
    assert compensation_bytes(GEOMETRY, "float32", wide) == 4 * refitted + 1_440_000


def test_what_collecting_statistics_takes() -> None:
    """Both Gram matrices of all 6 layers in float64, and of one more while they are added."""
    assert compensation_bytes(GEOMETRY, "bfloat16", 1) == 7 * 8 * (64 * 64 + 200 * 200)


def test_what_scoring_by_divergence_takes_besides() -> None:
    """Distributions over 128 tokens at each position of a batch, in float32, below 1 GB."""
    accounting = Accounting(tiny_config("llama"))

    def needed(batch_tokens: int, *, compensated: bool = False, kl: bool) -> int:
        return shape_evaluator_bytes(
            accounting,
            "float32",
            batch_tokens=batch_tokens,
            hidden_size=48,
            compensated=compensated,
            by_divergence=kl,
        )

    assert needed(512, kl=True) - needed(512, kl=False) == 512 * 128 * 4
    assert needed(4_000_000, kl=True) == needed(4_000_000, kl=False)
    assert needed(512, compensated=True, kl=False) - needed(512, kl=False) == compensation_bytes(
        accounting.geometry, "float32", 48
    )


def test_what_training_whole_matrices_takes() -> None:
    """Difference, gradient and two moments of each weight of a block in float32, and the sum."""
    config = tiny_config("llama")
    layers = tiny_model(config).model.layers
    matrices = [each for each in layers.modules() if isinstance(each, nn.Linear)]
    accounting = Accounting(config)

    def needed(rank: int | None, num_kept: int = 0) -> int:
        return training_bytes(
            accounting,
            accounting.dense,
            "bfloat16",
            batch_tokens=96,
            hidden_size=48,
            vocab_size=128,
            logit_tokens=96,
            rank=rank,
            num_kept=num_kept,
        )

    weights = sum(each.weight.numel() + each.bias.numel() for each in matrices)
    assert needed(None) - needed(0) == (16 + 2) * weights
    assert needed(None, num_kept=3) - needed(None) == 3 * 4 * weights
    assert 4 * (needed(2, num_kept=3) - needed(2)) == 3 * (needed(2) - needed(0))


def test_what_timing_blocks_takes() -> None:
    """Of each layer of a chain the narrowed output projections, 16 channels a KV head, beside the
    whole model; of a chain that is longer than the model those that it has.
    """
    config = tiny_config("llama", num_hidden_layers=12)
    accounting = Accounting(config)
    copied = 2 * 48 * (16 * (0 + 2 + 3) + (0 + 20 + 48))
    for depth, layers in ((8, 8), (10, 10), (99, 12)):
        whole = evaluator_bytes(accounting.num_dense_parameters, "bfloat16", 30, 48, layers)
        found = latency_evaluator_bytes(
            accounting,
            "bfloat16",
            batch_tokens=30,
            hidden_size=48,
            levels=Levels((0, 2, 3), (0, 20, 48), depth),
        )
        assert found == whole + layers * copied
