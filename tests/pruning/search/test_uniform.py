from __future__ import annotations

import pytest
from transformers import AutoConfig

from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.search.allocation import Limit, resized
from pruning.search.plan import Range
from pruning.search.settings import SearchSettings
from pruning.search.strategies import strategy_of
from pruning.search.uniform import uniform_shape
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
