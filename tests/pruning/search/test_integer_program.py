"""Limits, the sizes around a shape, and the integer program where its tolerances would tell."""

from __future__ import annotations

import numpy as np
import pytest

from pruning.costs.target import Cost, Target
from pruning.search.allocation import Block, Limit, Sensitivities, neighbours, solve
from pruning.shape import ModelShape


def channels(shape: ModelShape) -> int:
    return sum(layer.mlp_channels for layer in shape.layers)


@pytest.mark.parametrize(
    ("given", "most", "said", "easier"),
    [(0.25, 3000.0, "0.5", "lower the target"), ("2.5kB", 2500, "2 kB", "allow more")],
)
def test_a_limit_speaks_as_its_target_was_given(
    given: float | str, most: float, said: str, easier: str
) -> None:
    """A share of the dense model that is gone, or bytes that are left."""
    limit = Limit.of_target(Target("search.target.memory", Cost("memory", channels, 4000), given))
    assert (limit.name, limit.most) == ("search.target.memory", most)
    assert limit.cost(ModelShape.parse("3x48*4")) == 192
    assert limit.as_given(2000) == said
    assert limit.easier == easier


def test_nothing_at_all_may_be_what_a_shape_costs() -> None:
    limit = Limit("channels", channels, 0)
    assert limit.is_kept(0)
    assert not limit.is_kept(1e-9)


def test_sizes_are_so_many_steps_up_and_down_within_the_dense_ones() -> None:
    base, dense = ModelShape.parse("2x40 3x8 0x24"), ModelShape.parse("3x48*3")
    assert neighbours(base, dense, channel_steps=(16, -8, -40), head_steps=(1, -3)) == {
        (0, "kv_heads"): (0, 3),
        (0, "mlp_channels"): (0, 32, 48),
        (1, "kv_heads"): (0,),
        (1, "mlp_channels"): (0, 24),
        (2, "kv_heads"): (1,),
        (2, "mlp_channels"): (0, 16, 40),
    }
    assert set(neighbours(base, dense, channel_steps=(0, 8), head_steps=())) == {
        (layer, "mlp_channels") for layer in range(3)
    }


@pytest.mark.parametrize("unit", [1, 1e-10])
def test_sixteen_blocks_are_solved_to_the_last_digit(unit: float) -> None:
    """Each may lose a half of its own weight: of all 65,536 choices the best, however close the
    next ones are, and in whatever unit the cost is.
    """
    draw = np.random.Generator(np.random.Philox(0))
    weights = draw.integers(20, 60, 16)
    changes = weights + draw.uniform(0, 0.2, 16)
    table: dict[Block, dict[int, float]] = {
        (layer, "mlp_channels"): {2: 0.0, 1: float(change)} for layer, change in enumerate(changes)
    }

    def cost(shape: ModelShape) -> float:
        return unit * float(weights @ [layer.mlp_channels for layer in shape.layers])

    most = int(1.5 * weights.sum())
    found = solve(
        Sensitivities(ModelShape.parse("1x2*16"), table), [Limit("weights", cost, unit * most)]
    )
    lost = np.arange(2**16)[:, None] >> np.arange(16) & 1
    kept = 2 * weights.sum() - lost @ weights <= most
    assert found.predicted == pytest.approx((lost @ changes)[kept].min(), abs=1e-9)
    assert cost(found.shape) <= unit * most
