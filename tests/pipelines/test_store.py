from __future__ import annotations

import math
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.store import BatchScore, Context, ScoreStore

CONTEXT = Context(model="m", tokens="t", order="o", dtype="float32", device="cpu", batch_size=2, num_threads=1)


def test_scores_come_back_to_the_last_bit(tmp_path: Path) -> None:
    scores = {("a", 0): BatchScore((math.pi * 1e3, 1 / 3, 5e-324, 1.7976931348623157e308), 31), ("a", 1): BatchScore((0.1 + 0.2,), 31)}
    url = f"sqlite:///{tmp_path}/deep/folder/scores.db"
    with ScoreStore(url) as store:
        store.add(CONTEXT, scores)
    with ScoreStore(url) as store:
        assert store.lookup(CONTEXT, ["a", "b"]) == scores


def test_scores_that_are_not_finite(tmp_path: Path) -> None:
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        store.add(CONTEXT, {("a", 0): BatchScore((math.nan, math.inf), 3)})
        found = store.lookup(CONTEXT, ["a"])["a", 0].nll
    assert math.isnan(found[0])
    assert found[1] == math.inf


@pytest.mark.parametrize("change", [{"model": "x"}, {"tokens": "x"}, {"order": "x"}, {"dtype": "x"}, {"device": "x"}, {"batch_size": 3}, {"num_threads": 2}])
def test_nothing_is_shared_between_contexts(tmp_path: Path, change: dict[str, object]) -> None:
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        store.add(CONTEXT, {("a", 0): BatchScore((1.0,), 3)})
        assert store.lookup(replace(CONTEXT, **change), ["a"]) == {}  # type: ignore[arg-type]


def test_a_score_is_never_replaced(tmp_path: Path) -> None:
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        store.add(CONTEXT, {("a", 0): BatchScore((1.0,), 3)})
        store.add(CONTEXT, {("a", 0): BatchScore((2.0,), 3), ("b", 0): BatchScore((3.0,), 3)})
        assert store.lookup(CONTEXT, ["a", "b"]) == {("a", 0): BatchScore((1.0,), 3), ("b", 0): BatchScore((3.0,), 3)}


def _write(url: str, worker: int) -> None:
    with ScoreStore(url) as store:
        for number in range(50):
            store.add(
                CONTEXT,
                {(f"shape{number}", batch): BatchScore((number + batch / 7,), 3) for batch in range(3)} | {(f"own{worker}", number): BatchScore((1.0,), 3)},
            )


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/scores.db"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(url, worker)) for worker in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    with ScoreStore(url) as store:
        found = store.lookup(CONTEXT, [*(f"shape{number}" for number in range(50)), *(f"own{worker}" for worker in range(4))])
    assert len(found) == 50 * 3 + 4 * 50
    assert found["shape7", 2] == BatchScore((7 + 2 / 7,), 3)


def test_a_password_is_not_in_the_error() -> None:
    from pruning.errors import InputError

    with pytest.raises(InputError) as caught:
        ScoreStore("postgresql+nodriver://me:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)
