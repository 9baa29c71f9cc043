from __future__ import annotations

import pytest
from transformers import AutoConfig

from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.search.greedy import GreedySearch
from pruning.search.implied import ImpliedStage, implied_search, target_range, whole_blocks
from pruning.search.plan import Range
from pruning.search.settings import SearchSettings
from pruning.shape import ModelShape
from tests.conftest import tiny_config

LLAMA_2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def test_the_published_shape_of_llama_2_7b() -> None:
    """9 attention and 1 MLP block, 55 MLP groups and 23 heads."""
    accounting = Accounting(
        AutoConfig.for_model(
            "llama", num_key_value_heads=32, tie_word_embeddings=False, **LLAMA_2_7B
        )
    )
    text = (
        "32x11008 26x11008 26x5888 32x11008*2 31x11008 32x11008 32x6912 0x0 32x11008*3 32x5888 "
        "32x11008*3 31x11008 28x3840 0x11008 30x11008 31x11008 "
        "0x11008 31x11008 0x1792 0x11008 0x1792 32x3840 0x1792 0x11008*2 31x11008 32x11008"
    )
    stages = implied_search(accounting, ModelShape.parse(text), mlp_group=1024, head_group=1)
    assert [stage.steps for stage in stages] == [10, 55, 23]
    assert [(stage.evaluations.min, stage.evaluations.max) for stage in stages] == [
        (595, 595),
        (1705, 1705),
        (529, 529),
    ]
    found = target_range(stages, (44, 52, 4))
    assert found == pytest.approx((0.219315, 0.219568), abs=1e-6)
    assert found[1] < 0.22, "a search to 0.22 takes another head group"
    assert target_range(stages, (10, 86, 4)) is None


@pytest.mark.parametrize("preference", [1, -1])
def test_every_search_is_implied_by_its_shape(preference: int) -> None:
    """Searches that prefer the first or the last candidate use layers up in opposite orders."""
    accounting = Accounting(tiny_config("llama", num_hidden_layers=6))
    for target in (0.1, 0.3, 0.4):
        search = GreedySearch(
            accounting,
            SearchSettings.resolved(
                accounting.geometry,
                target_ratio=target,
                distribution=(40, 40, 20),
                mlp_group_channels=16,
                head_group_channels=16,
            ),
        )
        while not search.done:
            search.observe(
                {candidate: preference * rank for rank, candidate in enumerate(search.propose())}
            )
        stages = implied_search(accounting, search.shape, mlp_group=16, head_group=1)
        for stage in stages:
            steps = [step for step in search.steps if step.stage == stage.name]
            assert stage.steps == len(steps)
            assert (
                stage.evaluations.min
                <= sum(len(step.candidates) for step in steps)
                <= stage.evaluations.max
            )
        found = target_range(stages, (40, 40, 20))
        assert found is not None
        assert found[0] < target <= found[1]


def test_a_shape_of_another_search() -> None:
    accounting = Accounting(tiny_config("llama"))
    with pytest.raises(
        InputError, match="keeps 41 MLP channels, which is not 48 less whole groups of 16"
    ):
        implied_search(accounting, ModelShape.parse("3x48*3 3x41"), mlp_group=16, head_group=1)


def test_groups_of_stages_that_removed_nothing_may_be_of_any_size() -> None:
    """A run of whole blocks has a group, too, which it did not use."""
    accounting = Accounting(tiny_config("llama"))
    stages = implied_search(
        accounting, ModelShape.parse("0x48 3x48*2 3x0"), mlp_group=256, head_group=8
    )
    assert [stage.steps for stage in stages] == [2, 0, 0]


def test_layers_that_ran_out_of_groups_give_a_range_of_evaluations() -> None:
    """Two of four layers lost both groups that they can lose. One after the other: 4 + 4 + 3 + 3
    candidates. In turns: 4 + 4 + 4 + 3.
    """
    accounting = Accounting(tiny_config("llama"))
    blocks, channels, heads = implied_search(
        accounting, ModelShape.parse("3x16*2 3x48*2"), mlp_group=16, head_group=1
    )
    assert (channels.steps, channels.evaluations) == (4, Range(14, 15))
    group = 16 * (3 * 48 + 2) / accounting.num_dense_parameters  # two biases a channel
    assert channels.ratio == pytest.approx(4 * group)
    assert channels.ratio_before == pytest.approx(3 * group)
    assert blocks == ImpliedStage("block", 0, Range(0, 0), 0.0, 0.0)
    assert (heads.steps, heads.ratio, heads.ratio_before) == (0, channels.ratio, channels.ratio)


def test_stages_without_steps_leave_the_targets_alone() -> None:
    stages = (
        ImpliedStage("block", 2, Range(15, 15), 0.2, 0.12),
        ImpliedStage("mlp_channels", 0, Range(0, 0), 0.2, 0.2),
        ImpliedStage("attention_heads", 0, Range(0, 0), 0.2, 0.2),
    )
    assert target_range(stages, (1, 0, 0)) == (0.12, 0.2)
    assert target_range(stages, (3, 1, 0)) == pytest.approx((0.16, 0.2))


def test_a_range_without_a_number_is_none() -> None:
    """Half of the target above 0.125 and up to 0.25, all of it above 0.5."""
    stages = (
        ImpliedStage("block", 1, Range(8, 8), 0.25, 0.125),
        ImpliedStage("mlp_channels", 0, Range(0, 0), 0.25, 0.25),
        ImpliedStage("attention_heads", 1, Range(4, 4), 0.75, 0.5),
    )
    assert target_range(stages, (1, 0, 1)) is None
    assert target_range(stages, (49, 0, 51)) == pytest.approx((0.5, 0.25 / 0.49))


@pytest.mark.parametrize(
    ("text", "blocks", "largest"),
    [
        ("0x80 3x0 2x96 3x64", "0x96 3x0 3x96*2", "3x0 3x96*3"),
        ("0x80 3x96 2x96 3x64", "0x96 3x96*3", "0x96 3x96*3"),
        ("3x80 3x0 2x96 3x64", "3x96 3x0 3x96*2", "3x0 3x96*3"),
    ],
)
def test_where_each_stage_ended_and_was_a_step_before(text: str, blocks: str, largest: str) -> None:
    """An MLP is twice as large as an attention: it is what went last, if one went at all."""
    accounting = Accounting(tiny_config("llama", intermediate_size=96))

    def ratio(text: str) -> float:
        return accounting.ratio(ModelShape.parse(text))

    shape = ModelShape.parse(text)
    channels = text.replace("2x", "3x")
    stages = implied_search(accounting, shape, mlp_group=16, head_group=1)
    assert [stage.steps for stage in stages] == [text.count("0x") + text.count("x0"), 3, 1]
    ends = [ratio(blocks), ratio(channels), ratio(text)]
    assert [stage.ratio for stage in stages] == pytest.approx(ends)
    last = [ratio(largest), ratio("3x80 3x96*3"), ratio("2x96 3x96*3")]
    assert [stage.ratio - stage.ratio_before for stage in stages] == pytest.approx(last)


def test_a_layer_runs_out_of_groups_where_one_channel_and_one_head_are_left() -> None:
    """47 of 48 channels and two of three heads are a group: after the first, a layer less."""
    accounting = Accounting(tiny_config("llama"))
    _, channels, heads = implied_search(
        accounting, ModelShape.parse("1x1*2 3x48*2"), mlp_group=47, head_group=2
    )
    assert channels.evaluations == heads.evaluations == Range(4 + 3, 4 + 3)


def test_a_model_of_one_layer() -> None:
    """Its MLP of 7,056 parameters is the smaller block."""
    accounting = Accounting(tiny_config("llama", num_hidden_layers=1))
    total = accounting.num_dense_parameters
    ratio, attention, mlp = whole_blocks(accounting, 0.01, layers=False)
    assert (ratio, attention, mlp) == (0, 0, 0)
    ratio, attention, mlp = whole_blocks(accounting, 7_000 / total, layers=False)
    assert attention + mlp == 1
    stages = implied_search(accounting, ModelShape.parse("2x32"), mlp_group=16, head_group=1)
    assert [stage.steps for stage in stages] == [0, 1, 1]


def test_the_nearest_ratio_of_whole_blocks() -> None:
    """An attention of 7,056 parameters and an MLP of 14,064, in each of four layers."""
    accounting = Accounting(tiny_config("llama", intermediate_size=96))
    total = 97_200
    assert accounting.num_dense_parameters == total

    def found(removed: int, *, layers: bool) -> tuple[int, int, int]:
        ratio, attention, mlp = whole_blocks(accounting, removed / total, layers=layers)
        return round(ratio * total), attention, mlp

    assert found(7_056 + 2 * 14_064, layers=False) == (35_184, 1, 2)
    assert found(7_056 + 2 * 14_064, layers=True) == (42_240, 2, 2)
    assert found(total, layers=False) == found(total, layers=True) == (84_480, 4, 4)
    assert found(0, layers=False) == (0, 0, 0)
