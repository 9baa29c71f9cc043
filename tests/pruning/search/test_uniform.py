from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.search.allocation import Limit, resized
from pruning.search.plan import Range
from pruning.search.settings import SearchSettings
from pruning.search.strategies import strategy_of
from pruning.search.strategy import Strategy
from pruning.search.uniform import uniform_shape
from pruning.shape import ModelShape
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def accounting() -> Accounting:
    return Accounting(tiny_config("llama"))


@pytest.mark.parametrize("target", [0.05, 0.1, 0.15])
def test_uniform_is_even_and_meets_its_target(accounting: Accounting, target: float) -> None:
    shape = uniform_shape(accounting, [Limit.of_parameters(accounting, target)], group=4)
    widths = [layer.mlp_channels for layer in shape.layers]
    assert accounting.ratio(shape) >= target
    assert widths[0] == widths[-1] == 48
    inner = widths[1:-1]
    assert max(inner) - min(inner) <= 4
    more = [
        resized(shape, (index, "mlp_channels"), width + 4)
        for index, width in enumerate(widths)
        if width == min(inner)
    ]
    assert all(accounting.ratio(each) < target for each in more), "it removes no more than asked"
    one = uniform_shape(
        accounting,
        [Limit.of_parameters(accounting, target)],
        group=4,
        whole_ends=False,
        one_width=True,
    )
    assert len({layer.mlp_channels for layer in one.layers}) == 1


def test_uniform_says_how_far_it_goes(accounting: Accounting) -> None:
    with pytest.raises(InputError, match=r"search.target_ratio: 0.9; MLPs of 4 channels in 2 of 4"):
        uniform_shape(accounting, [Limit.of_parameters(accounting, 0.9)], group=4)


def test_uniform_of_a_published_size() -> None:
    config = AutoConfig.for_model(
        "llama",
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    accounting = Accounting(config)
    shape = uniform_shape(accounting, [Limit.of_parameters(accounting, 0.2)], group=64)
    assert 0.2 <= accounting.ratio(shape) < 0.2015
    assert {layer.mlp_channels for layer in shape.layers} == {1536, 1024, 960}


def test_what_no_group_divides_stays(accounting: Accounting) -> None:
    with pytest.raises(InputError, match=r"search.target_ratio: 0.9; MLPs of 8 channels in 2 of 4"):
        uniform_shape(accounting, [Limit.of_parameters(accounting, 0.9)], group=20)


def test_the_plan_is_exact(accounting: Accounting) -> None:
    """Three groups of 16 channels, 2,336 parameters each, are the first to be a tenth of 69,168."""
    settings = SearchSettings.resolved(
        accounting.geometry,
        target_ratio=0.1,
        distribution=(0, 1, 0),
        strategy="uniform",
        mlp_group_channels=16,
    )
    blocks, channels, heads = strategy_of(settings).planned(accounting).stages
    assert (channels.steps, channels.evaluations) == (Range(3, 3), Range(3, 3))
    assert channels.ratio == pytest.approx((3 * 2336 / 69_168,) * 2)
    for stage in (blocks, heads):
        assert (stage.steps, stage.evaluations, stage.ratio) == (Range(0, 0), Range(0, 0), (0, 0))


def test_of_three_layers_only_the_inner_one_is_narrowed() -> None:
    three, two = (Accounting(tiny_config("llama", num_hidden_layers=count)) for count in (3, 2))
    assert (
        uniform_shape(three, [Limit.of_parameters(three, 0.01)], group=16).text == "3x48 3x32 3x48"
    )
    assert uniform_shape(two, [Limit.of_parameters(two, 0.06)], group=16).text == "3x32*2"


def channels(shape: ModelShape) -> int:
    return sum(layer.mlp_channels for layer in shape.layers)


def heads(shape: ModelShape) -> int:
    """Of shapes no larger than the dense one: tables of latencies know no others."""
    assert max(layer.kv_heads for layer in shape.layers) <= 3
    assert max(layer.mlp_channels for layer in shape.layers) <= 48
    return sum(layer.kv_heads for layer in shape.layers)


@pytest.mark.parametrize(
    ("most", "text"),
    [
        (288, "3x48*6"),
        (280, "3x48*4 3x40 3x48"),
        (272, "3x48*2 3x40 3x48 3x40 3x48"),
        (264, "3x48*2 3x40*3 3x48"),
        (256, "3x48 3x40*4 3x48"),
        (255, "3x48 3x40*3 3x32 3x48"),
    ],
)
def test_layers_that_keep_a_group_more_are_evenly_spaced(most: int, text: str) -> None:
    accounting = Accounting(tiny_config("llama", num_hidden_layers=6))
    shape = uniform_shape(accounting, [Limit("channels", channels, most)], group=8)
    assert shape.text == text


@pytest.mark.parametrize(
    ("most", "step", "text"),
    [
        (240, 1, "3x48 3x24*2 3x48"),
        (239, 1, "3x48 3x24 2x24 3x48"),
        (192, 1, "3x48 2x8*2 3x48"),
        (239, 0, "3x48 3x24 3x16 3x48"),
        (239, None, "3x48 3x24 3x16 3x48"),
    ],
)
def test_attention_stays_whole_while_half_of_each_mlp_is_enough(
    accounting: Accounting, most: int, step: int | None, text: str
) -> None:
    """A head costs as much as 8 channels. To 239 heads go first; to 192 even one head in each and
    half of the channels are too many, and more channels go than that.
    """
    limit = Limit("cost", lambda shape: channels(shape) + 8 * heads(shape), most)
    given = {} if step is None else {"heads": step}
    assert uniform_shape(accounting, [limit], group=8, **given).text == text


def test_heads_alone_go_as_evenly_down_to_one_of_each_layer(accounting: Accounting) -> None:
    found = [
        uniform_shape(accounting, [Limit("heads", heads, most)], group=8, heads=1).text
        for most in range(12, 7, -1)
    ]
    assert found == [
        "3x48*4",
        "3x48*2 2x48 3x48",
        "3x48 2x48*2 3x48",
        "3x48 2x48 1x48 3x48",
        "3x48 1x48*2 3x48",
    ]
    one = Accounting(tiny_config("llama", num_hidden_layers=1))
    assert uniform_shape(one, [Limit("heads", heads, 2)], group=8, heads=1).text == "2x48"


@pytest.mark.parametrize("step", [0, 1])
def test_a_single_channel_stays(accounting: Accounting, step: int) -> None:
    limit = Limit("channels", channels, 98)
    assert uniform_shape(accounting, [limit], group=47, heads=step).text == "3x48 3x1*2 3x48"
    with pytest.raises(InputError, match="come to 128, with attention whole; allow more"):
        uniform_shape(accounting, [limit], group=16)


def test_what_is_out_of_reach_is_said_with_the_smallest_sizes() -> None:
    accounting = Accounting(
        tiny_config("llama", hidden_size=96, num_attention_heads=6, num_key_value_heads=6)
    )
    limits = [
        Limit("few", lambda shape: sum(layer.kv_heads for layer in shape.layers), 15),
        Limit("many", lambda shape: sum(layer.kv_heads for layer in shape.layers), 16),
        Limit("channels", channels, 100),
    ]
    smallest = "MLPs of 8 channels and attentions of 2 KV heads in 2 of 4 layers"
    with pytest.raises(InputError) as caught:
        uniform_shape(accounting, limits, group=8, heads=2)
    assert str(caught.value).splitlines() == [
        f"{name}; {smallest} come to {reached}; allow more, or use smaller groups"
        for name, reached in (("few: 15", 16), ("channels: 100", 112))
    ]


def uniform(accounting: Accounting, **changes: Any) -> Strategy:
    given = {"target_ratio": 0.1, "distribution": (0, 1, 0), "mlp_group_channels": 8} | changes
    return strategy_of(SearchSettings.resolved(accounting.geometry, strategy="uniform", **given))


@pytest.mark.parametrize(
    ("constraint", "text", "path"),
    [
        ("none", "3x48 3x24*2 3x48", [(layer, x) for x in (40, 32, 24) for layer in (1, 2)]),
        ("one_width", "3x32*4", [(layer, x) for x in (40, 32) for layer in (3, 1, 2, 0)]),
    ],
)
def test_every_layer_goes_by_a_group_before_the_next_group(
    accounting: Accounting, constraint: str, text: str, path: list[tuple[int, int]]
) -> None:
    """Eight channels are 1,168 of 69,168 parameters: six times that is the first to be a tenth."""
    strategy = uniform(accounting, shape_constraint=constraint)
    shape = ModelShape.parse(text)
    assert strategy.first_shapes(accounting) == (accounting.dense, shape)
    search, found = strategy.search(accounting, {}), []
    while not search.done:
        [removal] = search.propose()
        assert removal.kind == "mlp_channels"
        found.append((removal.layer, removal.remaining))
        search.observe({removal: 1.0})
    assert found == path
    assert search.shape == shape
    plan = strategy.planned(accounting)
    assert (plan.dead_ends, plan.impossible) == (False, None)


def test_settings_that_do_not_fit_the_model_are_said_first(accounting: Accounting) -> None:
    with pytest.raises(InputError, match="search.mlp_group_channels: 64; this model's MLPs have"):
        uniform(accounting, mlp_group_channels=64).search(accounting, {})
