"""The models that blocks are timed with, and what comes out of them. Times are never asserted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pruning.costs.block_times import Levels
from pruning.costs.latency import BlockTimes
from pruning.costs.speed import SpeedSettings
from pruning.errors import InputError
from pruning.models.checkpoint import Checkpoint
from workers.evaluators import latency
from workers.evaluators.latency import LatencyEvaluator
from workers.pool.inline_pool import InlinePool
from workers.tasks import BenchmarkSpec, LatencyTask, WindowTask

LEVELS = Levels((0, 2, 3), (0, 20, 48))
TASK = LatencyTask(SpeedSettings(batch_size=2, prompt_tokens=6, new_tokens=2, rounds=2), LEVELS)


@pytest.fixture
def spec(checkpoint_folder: Path) -> BenchmarkSpec:
    return BenchmarkSpec(Checkpoint(checkpoint_folder), "float32")


def test_each_model_has_layers_of_its_own_sizes(spec: BenchmarkSpec) -> None:
    """Real ones, with the strides of an export; what was not cut inside of rows is not copied."""
    evaluator = LatencyEvaluator(spec)
    models = evaluator.models(LEVELS)
    assert len(models) == LEVELS.num_models == 6
    dense = evaluator.model.model.layers
    for stack, model in models.items():
        layers = model.model.layers
        assert len(layers) == stack.depth
        for layer, whole in zip(layers, dense, strict=False):
            heads, channels = stack.layer.kv_heads, stack.layer.mlp_channels
            if heads:
                assert layer.self_attn.k_proj.weight.shape == (8 * heads, 48)
                assert layer.self_attn.o_proj.weight.shape == (48, 16 * heads)
            if channels:
                assert layer.mlp.down_proj.weight.shape == (48, channels)
                ours, theirs = (each.mlp.up_proj.weight.data_ptr() for each in (layer, whole))
                assert ours == theirs
        assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_a_pool_measures_every_size(spec: BenchmarkSpec) -> None:
    pool = InlinePool(spec, kind=LatencyEvaluator)
    [[(task, times)]] = pool.run([TASK])
    assert task is TASK
    assert isinstance(times, BlockTimes)
    assert set(times.kv_heads) == set(LEVELS.kv_heads)
    assert set(times.mlp_channels) == set(LEVELS.mlp_channels)
    for spread in (times.rest.prefill, times.kv_heads[2].decode, times.mlp_channels[20].prefill):
        assert spread.lowest <= spread.median <= spread.highest
    assert pool.arithmetic.device.startswith("cpu")
    assert pool.arithmetic.attention == "sdpa"


def test_other_tasks_are_refused(spec: BenchmarkSpec) -> None:
    with pytest.raises(TypeError, match="an evaluator of latencies cannot do 1 windows"):
        LatencyEvaluator(spec).run(WindowTask.of(torch.zeros(1, 4, dtype=torch.int64).numpy()))


@pytest.mark.parametrize("kind", [MemoryError, torch.OutOfMemoryError])
def test_what_does_not_fit_into_memory_says_what_to_lower(
    spec: BenchmarkSpec, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def full(*_: object) -> None:
        raise kind("no more")

    monkeypatch.setattr(latency, "time_blocks", full)
    with pytest.raises(InputError, match=r"batch_size: 2 sequences of 8 tokens do not fit"):
        LatencyEvaluator(spec).run(TASK)


def test_other_errors_are_what_they_are(
    spec: BenchmarkSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(latency, "time_blocks", broken)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        LatencyEvaluator(spec).run(TASK)
