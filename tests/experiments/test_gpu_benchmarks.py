"""What the benchmarks for GPUs make of tiny models on a CPU. Real times are never asserted."""

from __future__ import annotations

import pytest
import torch

from experiments.benchmarks import candidates, latency_7b
from experiments.benchmarks.prefix_reuse import block_candidates, llama_2_7b, suffix_flops
from pruning.costs.accounting import Accounting
from pruning.costs.block_times import Levels, block_times, stacks_of
from pruning.costs.latency import PHASES
from pruning.costs.speed import SpeedSettings
from pruning.errors import InputError
from pruning.models.geometry import Geometry
from pruning.shape import LayerShape, ModelShape
from tests.conftest import tiny_config

LLAMA = Accounting(llama_2_7b())


def test_shapes_of_a_7b_reach_their_ratios_aligned_and_not() -> None:
    shapes = latency_7b.shapes_of(LLAMA)
    dense, *others = shapes
    assert dense == LLAMA.dense
    ratios = [LLAMA.ratio(shape) for shape in others]
    assert ratios[:6] == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3], abs=0.012)
    widths = [shape.layers[0].mlp_channels for shape in others[:6]]
    assert [width % 256 for width in widths[::2]] == [0, 0, 0]
    assert all(width % 256 for width in widths[1::2])
    assert others[6].layers[0].kv_heads == 24
    assert ratios[6] == pytest.approx(0.2, abs=0.012)
    assert [layer == LayerShape(0, 0) for layer in others[7].layers].count(True) == 6
    assert shapes[others[0]].startswith(f"{ratios[0]:.1%} less: ")


def test_a_block_is_shown_beside_the_whole_one() -> None:
    levels = Levels((0, 2, 3), (0, 24, 48))
    config = tiny_config("llama")
    rows = latency_7b.measured_rows(
        config, levels, [SpeedSettings(2, 4, 3, 2)], dtype="float32", device="cpu"
    )
    blocks = [row[1] for row in rows[:4]]
    assert blocks == ["2 KV heads", "3 KV heads", "24 channels", "48 channels"]
    assert [row[3] for row in (rows[1], rows[3])] == ["1.000", "1.000"]
    assert rows[4][:2] == ("2", "dense")
    assert rows[4][3:6:2] == ("1.000", "1.000")
    assert len(rows) == 4 + len(latency_7b.shapes_of(Accounting(config)))


def test_decoding_is_told_of_one_token() -> None:
    """An MLP takes one second, an attention as much, and five tokens are decoded."""
    stacks = stacks_of(Geometry(4, 3, 2, 8, 48), Levels((0, 3), (0, 48)))
    seconds = {
        stack: {
            phase: [stack.depth * (stack.layer.mlp_channels / 48 + stack.layer.kv_heads / 3)]
            for phase in PHASES
        }
        for stack in stacks
    }
    last = latency_7b.block_rows(SpeedSettings(1, 4, 5, 1), block_times(seconds))[-1]
    assert last[1:6] == ("48 channels", "1e+03 ms", "1.000", "200 ms", "1.000")


def test_a_load_that_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(latency_7b, "seconds_of", fails)
    [row] = latency_7b.measured_rows(
        tiny_config("llama"),
        Levels((0, 3), (0, 48)),
        [SpeedSettings(7, 4, 3, 2)],
        dtype="float32",
        device="cpu",
    )
    assert row[:2] == ("7", "does not fit into memory")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a CUDA device"):
        latency_7b.run()


def test_flops_of_a_step_by_hand() -> None:
    """Layer i of N runs for the 2 (i + 1) candidates at or below it, but for what they lost."""
    shapes = block_candidates(LLAMA)
    dense, count = LLAMA.dense, len(LLAMA.dense.layers)

    def flops(shape: ModelShape) -> int:
        counted = LLAMA.flops_per_token(shape, context_length=2048)
        assert counted is not None
        return counted

    head = flops(ModelShape((LayerShape(0, 0),) * count))
    layer = (flops(dense) - head) // count
    runs = sum(2 * (number + 1) for number in range(count))
    lost = sum(flops(dense) - flops(shape) for shape in shapes)
    expected = count * layer + runs * layer - lost + 2 * count * head
    assert suffix_flops(LLAMA, shapes, 2048) == expected


def test_a_step_of_a_tiny_model() -> None:
    config = tiny_config("llama")
    found = candidates.step_of(config, 2, 8, 1, "float32", "cpu")
    accounting = Accounting(config)
    shapes = block_candidates(accounting)
    assert found.num_candidates == len(shapes) == 8
    assert found.flops == 2 * 8 * suffix_flops(accounting, shapes, 8)


def test_the_share_of_the_peak_by_hand() -> None:
    found = candidates.Measured(60, whole_s=30.0, reused_s=12.0, flops=6 * 10**15, allowed=2.0)
    assert candidates.row("x", 4, found, peak=1e15) == (
        *("x", "4", "2", "5", "2.50"),
        *("2.00", "500", "50.0%"),
    )
    assert candidates.peak_flops("cpu", "float32", 64) > 0
