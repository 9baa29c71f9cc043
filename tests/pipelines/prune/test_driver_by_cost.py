"""The loop of a search whose steps are judged by score per cost."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.prune.scorer import Scorer
from pipelines.runs.journal import Journal
from pruning.search.greedy import GreedySearch
from pruning.shape import Removal
from tests.pipelines.prune.test_driver import FakePool, drive, times_removed

MLP = 64
"""Channels: an MLP is a third larger than an attention."""


def by_cost(folder: Path, pool: FakePool) -> tuple[GreedySearch, Scorer, Journal]:
    return drive(folder, pool, judged_by="score_per_cost", mlp_channels=MLP)


@pytest.mark.parametrize("dies_after", [None, 0, 25, 60])
def test_a_search_by_cost_goes_on_and_is_split_to_the_same_bytes(
    tmp_path: Path, dies_after: int | None
) -> None:
    whole = by_cost(tmp_path / "whole", FakePool())
    by_score = drive(tmp_path / "by_score", FakePool(), mlp_channels=MLP)
    assert [line["removed"] for line in whole[2].lines] != [
        line["removed"] for line in by_score[2].lines
    ]
    if dies_after is not None:
        with pytest.raises(ConnectionError):
            by_cost(tmp_path / "run", FakePool(3, dies_after))
    _, _, journal = by_cost(tmp_path / "run", FakePool(5))
    assert times_removed(journal) == times_removed(whole[2])
    again, _, _ = by_cost(tmp_path / "run", FakePool(dies_after=0))
    assert again.steps == whole[0].steps


def test_what_a_candidate_lost_by_is_in_the_units_of_its_score(tmp_path: Path) -> None:
    """Of a step by cost: where its rise for what it brings would have been that of the one taken,
    with a standard error over the sequences, each computed here from its own scores.
    """
    search, _, journal = by_cost(tmp_path, FakePool())
    shape, dense = search.accounting.dense, search.accounting.num_dense_parameters
    for step, line in zip(search.steps, journal.lines, strict=True):
        counts = {"block": (2, 2, 1), "width": (2, 2)}[
            "block" if step.stage == "block" else "width"
        ]

        def scores(text: str, counts: tuple[int, ...] = counts) -> np.ndarray[Any, Any]:
            return np.array(
                [
                    random.Random(f"{text} {batch} {sequence}").random()
                    for batch, count in enumerate(counts)
                    for sequence in range(count)
                ]
            )

        base, best = scores(shape.text), scores(step.shape.text)
        assert line["base_nll"] == pytest.approx(base.mean())
        change = (best - base).mean()
        for candidate in line["candidates"]:
            removal = Removal.from_json(candidate)
            own = scores(shape.without(removal).text)
            gain = search.accounting.ratio(shape.without(removal)) - search.accounting.ratio(shape)
            taken = search.accounting.ratio(step.shape) - search.accounting.ratio(shape)
            assert candidate["gain"] == pytest.approx(gain, abs=1 / dense)
            if removal == step.removal:
                assert candidate["margin"] == 0.0
                continue
            share = gain / taken if change >= 0 else taken / gain
            lost = own - (base + share * (best - base))
            assert candidate["margin"] == pytest.approx(lost.mean())
            assert candidate["margin"] >= 0
            stderr = lost.std(ddof=1) / math.sqrt(len(lost))
            assert candidate["stderr"] == pytest.approx(stderr)
        runner_up = min(c["margin"] for c in line["candidates"] if c["margin"] > 0)
        assert line["margin"] >= runner_up
        shape = step.shape


def test_the_score_before_a_step_is_not_counted_as_reused(tmp_path: Path) -> None:
    """It is the removal before, on the same text, and says nothing of an earlier search."""
    _, scorer, _ = by_cost(tmp_path, FakePool())
    assert (scorer.num_reused, scorer.num_scored > 50) == (0, True)
    (tmp_path / "trajectory.jsonl").unlink()
    search, again, _ = by_cost(tmp_path, FakePool(dies_after=0))
    batches = {"block": 3, "mlp_channels": 2, "attention_heads": 2}
    scored = sum(batches[step.stage] * len(step.candidates) for step in search.steps)
    assert (again.num_scored, again.num_reused) == (0, scored)
