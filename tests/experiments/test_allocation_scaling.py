"""What the benchmark of an allocation calls scoring, by hand."""

from __future__ import annotations

import pytest

from experiments.benchmarks.allocation_scaling import NUM_BATCHES, Outcome, row, scoring_s
from pruning.search.rounds import Wave
from pruning.shape import ModelShape
from workers.pool.simulated import Pace

PACE = Pace(layer_s=2.0, head_s=3.0)
BASE = ModelShape.parse("3x32*4")


@pytest.mark.parametrize(
    ("shapes", "num_layers"),
    [
        (["3x16 3x32*3"], 4),
        (["3x32*3 2x32"], 1),
        (["3x32 3x40 3x32 3x40"], 3),
        (["3x32*4"], 0),
        (["3x32 2x32 3x32*2", "3x32*2 3x0 3x32"], 3 + 2),
    ],
    ids=str,
)
def test_a_candidate_runs_from_its_first_changed_layer(shapes: list[str], num_layers: int) -> None:
    """2 s for each layer and 3 s for each head, on every batch."""
    wave = Wave(BASE, tuple(ModelShape.parse(each) for each in shapes))
    assert scoring_s(wave, PACE) == NUM_BATCHES * (2 * num_layers + 3 * len(shapes))


def test_the_table_tells_scoring_from_prefixes() -> None:
    cells = row(Outcome(1024, 94, 12_000, 20.0, scoring=0.81, busy=0.9, driver_ms=0.5))
    shares = [cells[name] for name in ("scoring", "prefixes", "waiting")]
    assert shares == ["81.0%", "9.0%", "10.0%"]
