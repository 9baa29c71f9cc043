"""What pools are given to score in these tests, and what must come out whoever does it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from pruning.importance.channel_order import ChannelOrder
from pruning.shape import ModelShape, Removal
from workers.pool.protocol import Pool
from workers.tasks import OrderTask, ScoreResult, ScoreTask

DENSE = ModelShape.dense(4, 3, 48)
REMOVALS = tuple(Removal("attention", layer, 0) for layer in range(4)) + tuple(
    Removal("mlp_channels", layer, 32) for layer in range(4)
)

Scores = dict[tuple[str, int, Removal | None], tuple[float, ...]]


def prepare(pool: Pool) -> str:
    """Sorts the weights; the order's fingerprint."""
    [(_, order)] = [answer for answers in pool.run([OrderTask("l1")]) for answer in answers]
    assert isinstance(order, ChannelOrder)
    pool.set_order(order)
    return order.fingerprint


def steps(order: str, count: int = 1) -> list[list[ScoreTask]]:
    """Four batches of eight candidates each, of `count` different shapes."""
    shape, found = DENSE, []
    for number in range(count):
        found.append(
            [
                ScoreTask(
                    "block",
                    batch,
                    shape.text,
                    REMOVALS if not number else REMOVALS[1:4] + REMOVALS[5:],
                    order,
                )
                for batch in range(4)
            ]
        )
        shape = DENSE.without(Removal("attention", 0, 0)).without(
            Removal("mlp_channels", 0, 48 - 3 * (number + 1))
        )
    return found


def score(
    pool: Pool, tasks: list[ScoreTask], after: Callable[[int], None] = lambda _: None
) -> Scores:
    """Every candidate must be answered exactly once. `after` is told how many are."""
    found: Scores = {}
    for answers in pool.run(tasks):
        for task, result in answers:
            assert isinstance(task, ScoreTask)
            assert isinstance(result, ScoreResult)
            for candidate, nll in zip(task.candidates, result.nll, strict=True):
                key = (task.base, task.batch, candidate)
                assert key not in found
                found[key] = nll
        after(len(found))
    assert Counter(key[:2] for key in found) == {
        (task.base, task.batch): len(task.candidates) for task in tasks
    }
    return found


def search(
    pool: Pool, count: int = 1, after: Callable[[int], None] = lambda _: None
) -> list[Scores]:
    order = prepare(pool)
    return [score(pool, tasks, after) for tasks in steps(order, count)]
