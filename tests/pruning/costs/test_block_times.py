"""Blocks told apart from the times of whole models: arithmetic with a clock of our own, models for
real. Real times are never asserted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from transformers import PreTrainedModel

from pruning.costs.accounting import Accounting
from pruning.costs.block_times import (
    Levels,
    Stack,
    block_times,
    depth_of,
    stacks_of,
    time_blocks,
)
from pruning.costs.latency import PHASES, Seconds
from pruning.costs.speed import SpeedSettings
from pruning.errors import InputError
from pruning.export.transformers import pruned_model
from pruning.models.dtypes import NUM_BYTES
from pruning.models.families import FAMILIES
from pruning.models.geometry import Geometry
from pruning.models.loaded_model import LoadedModel
from pruning.shape import LayerShape, ModelShape
from tests.conftest import tiny_config, tiny_model

GEOMETRY = Geometry(4, 3, 2, 8, 48)
LEVELS = Levels((0, 1, 3), (0, 20, 48))
SETTINGS = SpeedSettings(batch_size=1, prompt_tokens=4, new_tokens=2, rounds=2)

# Seconds of the parts; placeholders of blocks that are gone take time of their own.
REST, PLACEHOLDER = 100.0, 0.5
ATTENTION = {0: PLACEHOLDER, 1: 3.0, 3: 7.0}
MLP = {0: PLACEHOLDER, 20: 30.0, 48: 21.0}


def taken(stack: Stack, factor: float = 1.0) -> float:
    """Of a model whose parts take these seconds."""
    layer = ATTENTION[stack.layer.kv_heads] + MLP[stack.layer.mlp_channels]
    return factor * (REST + stack.depth * layer)


def test_every_size_is_timed_beside_a_whole_block() -> None:
    stacks = stacks_of(GEOMETRY, LEVELS)
    assert [(each.layer.kv_heads, each.layer.mlp_channels, each.depth) for each in stacks] == [
        (0, 48, 4), (1, 48, 4), (3, 48, 4), (3, 0, 4), (3, 20, 4), (3, 48, 1)
    ]  # fmt: skip
    assert stacks[-1].shape(4).text == "3x48 0x0*3"


def test_sizes_of_a_model() -> None:
    """0 and the whole always; an eighth each, of wide MLPs in multiples of 64."""
    assert Levels.of(GEOMETRY) == Levels((0, 1, 2, 3), (0, 6, 12, 18, 24, 30, 36, 42, 48))
    llama = Levels.of(Geometry(32, 32, 1, 128, 11008))
    assert llama.kv_heads == (0, 4, 8, 12, 16, 20, 24, 28, 32)
    assert llama.mlp_channels == (0, 1408, 2816, 4224, 5632, 7040, 8448, 9856, 11008)
    assert Levels.of(Geometry(4, 9, 2, 8, 1040)) == Levels(
        (0, 2, 4, 6, 8, 9), (0, 192, 384, 576, 768, 960, 1040)
    )
    assert Levels.of(Geometry(4, 3, 2, 8, 512)).mlp_channels == tuple(range(0, 513, 64))
    assert Levels.of(GEOMETRY, width_step=20).mlp_channels == (0, 20, 40, 48)
    assert Levels.of(GEOMETRY, widths=[47, 3, 48]).mlp_channels == (0, 3, 47, 48)
    assert llama.num_models == len(stacks_of(Geometry(32, 32, 1, 128, 11008), llama)) == 18
    with pytest.raises(InputError, match=r"widths: 49, 50; the MLPs have 48 channels"):
        Levels.of(GEOMETRY, widths=[49, 8, 50])


def test_deep_models_are_timed_in_part() -> None:
    stacks = stacks_of(Geometry(30, 3, 2, 8, 48), LEVELS)
    assert [each.depth for each in stacks] == [8, 8, 8, 8, 8, 1]
    assert stacks[0].shape(30).text == "0x48*8 0x0*22"
    deeper = stacks_of(Geometry(30, 3, 2, 8, 48), replace(LEVELS, depth=20))
    assert [each.depth for each in deeper] == [20, 20, 20, 20, 20, 1]


@pytest.mark.parametrize(
    ("layers", "hidden", "dtype", "depth"),
    [
        (4, 48, "float32", 4),
        (30, 48, "float32", 30),
        (40, 1024, "bfloat16", 32),  # 8 MiB an attention, 12 an MLP
        (40, 1024, "float32", 16),
        (40, 2048, "float32", 8),  # 64 MiB, but never fewer
    ],
)
def test_a_chain_has_weights_that_no_cache_holds(
    layers: int, hidden: int, dtype: str, depth: int
) -> None:
    """256 MiB of attentions and as many of MLPs, or the whole model."""
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "head_dim": 64}
    heads = {"num_attention_heads": hidden // 64 or 1, "num_key_value_heads": hidden // 64 or 1}
    config = tiny_config("llama", num_hidden_layers=layers, vocab_size=8, **sizes, **heads)
    accounting = Accounting(config)
    assert depth_of(accounting, dtype) == depth
    for gone in ({"kv_heads": 0}, {"mlp_channels": 0}):
        left = ModelShape(tuple(replace(each, **gone) for each in accounting.dense.layers))
        weights = accounting.num_block_parameters(left) * NUM_BYTES[dtype]
        assert weights * depth / layers >= 256 * 2**20 or depth == layers


def test_two_layers_tell_a_layer_from_the_rest() -> None:
    stacks = stacks_of(Geometry(2, 3, 2, 8, 48), LEVELS)
    assert [each.depth for each in stacks] == [2, 2, 2, 2, 2, 1]
    found = block_times(
        {stack: {"prefill": [taken(stack)], "decode": [taken(stack)]} for stack in stacks}
    )
    assert found.rest.prefill.median == 100


def test_a_model_of_one_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="one layer"):
        stacks_of(Geometry(1, 3, 2, 8, 48), LEVELS)


def test_parts_come_out_of_whole_models() -> None:
    """In the second round everything is twice as slow, and decoding takes ten times the prefill."""
    found = block_times(
        {
            stack: {
                "prefill": [taken(stack), taken(stack, 2)],
                "decode": [taken(stack, 10), taken(stack, 20)],
            }
            for stack in stacks_of(GEOMETRY, LEVELS)
        }
    )
    assert found.rest.prefill == Seconds(150, 100, 200, None)
    assert found.rest.decode == Seconds(1500, 1000, 2000, None)
    # An MLP that is gone takes nothing: what stands in its place counts for the attention.
    mlp = {size: times.prefill for size, times in found.mlp_channels.items()}
    assert mlp == {
        0: Seconds(0, 0, 0, None),
        20: Seconds(44.25, 29.5, 59, None),
        48: Seconds(30.75, 20.5, 41, None),
    }
    attention = {size: times.prefill for size, times in found.kv_heads.items()}
    assert attention == {
        0: Seconds(1.5, 1, 2, None),
        1: Seconds(5.25, 3.5, 7, None),
        3: Seconds(11.25, 7.5, 15, None),
    }


def test_what_slows_all_models_of_a_round_is_no_error() -> None:
    """In four rounds; an MLP of 20 channels alone takes up to 6 seconds more."""
    slow, more = (1.0, 3.0, 2.0, 1.0), (0.0, 6.0, 2.0, 0.0)
    found = block_times(
        {
            stack: {
                phase: [
                    factor * (taken(stack) + 4 * late * (stack.layer.mlp_channels == 20))
                    for factor, late in zip(slow, more, strict=True)
                ]
                for phase in PHASES
            }
            for stack in stacks_of(GEOMETRY, LEVELS)
        }
    )
    errors = {size: each.prefill.standard_error for size, each in found.mlp_channels.items()}
    quartiles, usual = (0.0, 5.0), 1.5
    assert errors[48] == pytest.approx(0)
    assert errors[20] == pytest.approx(
        usual * 1.2533 / 1.349 * (quartiles[1] - quartiles[0]) / 2, rel=1e-3
    )


def test_a_whole_model_of_any_shape_is_the_sum_of_its_parts() -> None:
    """Also of sizes that were never timed together, but where both blocks of a layer are gone."""
    stacks = stacks_of(GEOMETRY, LEVELS)
    found = block_times(
        {stack: {"prefill": [taken(stack)], "decode": [taken(stack)]} for stack in stacks}
    )
    for heads in LEVELS.kv_heads:
        for channels in LEVELS.mlp_channels:
            if heads or channels:
                stack = Stack(LayerShape(heads, channels), 3)
                layer = found.kv_heads[heads].decode.median
                layer += found.mlp_channels[channels].decode.median
                assert found.rest.decode.median + 3 * layer == pytest.approx(taken(stack))


def models(model_type: str = "llama") -> dict[Stack, PreTrainedModel]:
    dense = LoadedModel.of(tiny_model(tiny_config(model_type)))
    return {
        stack: pruned_model(dense, stack.shape(4)) for stack in stacks_of(dense.geometry, LEVELS)
    }


def scripted(seconds: list[float]) -> Callable[[], float]:
    """A clock by which runs, in order, take so long to prefill, and twice that to decode."""

    def readings() -> Iterator[float]:
        now = 0.0
        for each in seconds:
            yield from accumulate((each, 2 * each), initial=now)
            now += 3 * each + 7  # what happens between runs does not count

    return readings().__next__


def test_models_take_turns_and_each_round_is_taken_apart_by_itself() -> None:
    """The machine is three times as slow in the second round, in which the order is reversed, and
    the first runs, which take longest, do not count.
    """
    found = models()
    stacks = list(found)
    seconds = [
        *(10 * taken(stack) for stack in stacks),
        *(taken(stack) for stack in stacks),
        *(taken(stack, 3) for stack in reversed(stacks)),
    ]
    times = time_blocks(found, SETTINGS, clock=scripted(seconds))
    assert times.rest.prefill == Seconds(200, 100, 300, None)
    assert times.rest.decode == Seconds(400, 200, 600, None)
    assert times.mlp_channels[20].prefill == Seconds(59, 29.5, 88.5, None)
    assert times.kv_heads[1].decode == Seconds(14, 7, 21, None)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_models_without_any_attention_prefill_and_decode(model_type: str) -> None:
    """With a cache that holds as many tokens as one with attention does."""
    found = models(model_type)
    without = next(model for stack, model in found.items() if stack.layer.kv_heads == 0)
    ids = torch.tensor([[3, 5, 7]])
    with torch.inference_mode():
        whole = without(input_ids=ids, use_cache=True)
        first = without(input_ids=ids[:, :2], use_cache=True)
        second = without(input_ids=ids[:, 2:], past_key_values=first.past_key_values)
    assert second.past_key_values.get_seq_length() == 3
    assert torch.allclose(second.logits[:, -1], whole.logits[:, -1], atol=1e-5)
    times = time_blocks(found, SETTINGS, clock=accumulate([1.0] * 1000).__next__)
    assert times.mlp_channels.keys() == set(LEVELS.mlp_channels)
    assert times.kv_heads.keys() == set(LEVELS.kv_heads)
