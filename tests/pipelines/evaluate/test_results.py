"""The table of an evaluation, from a report by hand."""

from __future__ import annotations

import re
from typing import Any

from pipelines.evaluate.results import table
from pruning.costs.speed import Spread


def a_report(rounds: list[tuple[float, float]]) -> dict[str, Any]:
    """One speed, of the dense and the pruned model in each round."""
    dense, pruned = zip(*rounds, strict=True)
    speeds = {
        "dense": Spread.of(dense),
        "pruned": Spread.of(pruned),
        "ratio": Spread.of(after / before for before, after in rounds),
    }
    return {
        "model": "m",
        "shape": "1x1",
        "ratio": 0.1,
        "perplexity": {},
        "tasks": {},
        "average": None,
        "dense": None,
        "cost": {
            role: {
                "prefill_tokens_per_s": {
                    "median": spread.median,
                    "lowest": spread.lowest,
                    "highest": spread.highest,
                }
            }
            for role, spread in speeds.items()
        },
    }


def test_the_ratio_of_a_speed_is_that_of_the_numbers_beside_it() -> None:
    """Of three rounds the pruned model won one by far; the median of the ratios is below 1."""
    report = a_report([(6611.0, 5950.0), (7900.0, 7078.0), (5000.0, 7600.0)])
    assert report["cost"]["ratio"]["prefill_tokens_per_s"]["median"] < 1
    shown = table(report)
    cells = {str(name.header): [str(cell) for cell in name.cells] for name in shown.columns}
    row = cells["metric"].index("prefill tokens/s")
    assert (cells["dense"][row], cells["pruned"][row]) == ("6,611.0", "7,078.0")
    found = re.fullmatch(r"x ([\d.]+) \(([\d.]+) to ([\d.]+)\)", cells["change"][row])
    assert found
    ratio, lowest, highest = map(float, found.groups())
    assert ratio == 1.07
    assert lowest <= ratio <= highest
