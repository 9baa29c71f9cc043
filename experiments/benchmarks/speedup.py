"""Two evaluators against one, for real: block steps of SmolLM2 on Ray actors with a core each."""

from __future__ import annotations

import time

from experiments.benchmarks import workload
from experiments.benchmarks.report import Report, median_speedup, rounds_table
from pruning.costs.accounting import Accounting
from pruning.importance.channel_order import ChannelOrder
from pruning.models.dtypes import resolve_dtype
from pruning.search.greedy import candidates_of
from pruning.search.stages import Stage
from pruning.shape import ModelShape
from workers.cluster.placement import Placement
from workers.cluster.ray_session import local_ray
from workers.pool.protocol import Pool
from workers.pool.ray_pool import RayPool
from workers.tasks import EvaluatorSpec, ScoreResult, ScoreTask

NUM_SEQUENCES, BATCH_SIZE, SEQUENCE_LENGTH = 4, 2, 64
BOUND = 1.85


def run(*, dtype: str = "auto", num_rounds: int = 3) -> Report:
    """One block step on one evaluator and on two, in turns."""
    checkpoint = workload.checkpoint()
    dtype = resolve_dtype(dtype, on_gpu=False)
    text, tokens = workload.calibration(checkpoint, NUM_SEQUENCES, SEQUENCE_LENGTH)
    accounting = Accounting(checkpoint.config())
    order = ChannelOrder.as_stored(accounting.geometry)
    tasks = block_step(accounting, order)
    spec = EvaluatorSpec(
        checkpoint, dtype, {"block": tokens.input_ids, "width": tokens.input_ids}, BATCH_SIZE
    )
    with (
        local_ray(3, 0),
        RayPool(spec, Placement(1, 0)) as one,
        RayPool(spec, Placement(2, 0)) as two,
    ):
        for pool in (one, two):
            pool.describe()
            pool.set_order(order)
            _seconds(pool, tasks[:1])  # the first forward of a process is slower
        rounds = [(_seconds(one, tasks), _seconds(two, tasks)) for _ in range(num_rounds)]
    speedup = median_speedup(rounds)
    return Report(
        "speedup",
        "Two evaluators against one",
        {
            "model": workload.MODEL,
            "dtype, threads of an evaluator": f"{dtype}, 1",
            "work": (
                f"the first block step: {len(tasks[0].candidates)} candidates on "
                f"{len(tasks)} batches of {BATCH_SIZE} x {SEQUENCE_LENGTH} tokens ({text})"
            ),
        },
        ("round", "one evaluator", "two evaluators", "speed-up"),
        rounds_table(rounds),
        (
            "Both gave the same NLL for every candidate in every round, bit by bit. The driver "
            "and Ray's own processes run on the same cores.",
        ),
        ()
        if speedup >= BOUND
        else (f"two evaluators are {speedup:.3f} times as fast as one, below {BOUND}",),
    )


def block_step(accounting: Accounting, order: ChannelOrder) -> list[ScoreTask]:
    """All candidates of the first block step, on every batch."""
    candidates = candidates_of(Stage("block", 0.5), accounting.dense)
    return [
        ScoreTask("block", batch, accounting.dense.text, candidates, order.fingerprint)
        for batch in range(NUM_SEQUENCES // BATCH_SIZE)
    ]


_known: dict[tuple[int, str], tuple[float, ...]] = {}


def _seconds(pool: Pool, tasks: list[ScoreTask]) -> float:
    started = time.perf_counter()
    answers = [answer for some in pool.run(tasks) for answer in some]
    seconds = time.perf_counter() - started
    for task, result in answers:
        assert isinstance(task, ScoreTask)
        assert isinstance(result, ScoreResult)
        for candidate, nll in zip(task.candidates, result.nll, strict=True):
            base = ModelShape.parse(task.base)
            shape = base.changed(candidate)
            assert _known.setdefault((task.batch, shape.text), nll) == nll, (
                f"{candidate} on batch {task.batch}: two answers"
            )
    return seconds
