"""What the pictures of a run show, from the figures that are drawn."""

from __future__ import annotations

from matplotlib.axes import Axes

from pipelines.runs import pictures
from pruning.search.allocation import Block

LINES = [
    {"step": 1, "stage": "mlp_channels", "ratio": 0.1, "perplexity": 9.0, "set": "block",
     "removed": {"layer": 1, "mlp_channels": 40}},
    {"step": 2, "stage": "attention_heads", "ratio": 0.2, "perplexity": 9.5, "set": "block",
     "removed": {"layer": 0, "kv_heads": 2}},
]  # fmt: skip
DENSE = {"block": 8.0, "width": 7.0}


def panels(prices: dict[Block, float] | None) -> list[Axes]:
    """The axes of a trajectory."""
    return pictures.trajectory_figure(LINES, DENSE, "a title", prices).axes


def test_a_search_without_prices_has_one_panel() -> None:
    (axes,) = panels(None)
    assert axes.get_ylabel() == "calibration perplexity"


def test_prices_of_blocks_that_were_narrowed_are_filled() -> None:
    prices: dict[Block, float] = {
        (0, "kv_heads"): 0.004,
        (1, "kv_heads"): 0.5,
        (0, "mlp_channels"): 0.003,
        (1, "mlp_channels"): 0.002,
    }
    _, below = panels(prices)
    found = {each.get_label(): each for each in below.collections}
    assert {label: each.get_offsets().tolist() for label, each in found.items()} == {
        "MLP channels, narrowed": [[1, 2.0]],
        "MLP channels, left whole": [[0, 3.0]],
        "attention heads, narrowed": [[0, 4.0]],
        "attention heads, left whole": [[1, 500.0]],
    }
    white = [1.0, 1.0, 1.0, 1.0]
    assert found["MLP channels, left whole"].get_facecolor().tolist() == [white]
    assert found["MLP channels, narrowed"].get_facecolor().tolist() != [white]
    assert below.get_yscale() == "log"


def test_a_price_below_zero_is_on_the_picture() -> None:
    _, below = panels({(0, "kv_heads"): -0.004, (1, "mlp_channels"): 0.002})
    assert below.get_yscale() == "symlog"
    low, high = below.get_ylim()
    assert low < -4 < 2 < high
