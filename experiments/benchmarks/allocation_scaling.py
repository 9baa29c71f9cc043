"""How busy evaluators are while all blocks of Llama-2-7B are measured for an allocation, at sizes
that this machine does not have: they wait as long as they would compute.

Nothing waits for anything else before the end: all (shape, batch) pairs are known at once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

from experiments.benchmarks.prefix_reuse import llama_2_7b
from experiments.benchmarks.report import Report
from experiments.benchmarks.scaling import (
    FLOPS_PER_S,
    PER_HOST,
    SEQUENCE_LENGTH,
    pace_of,
    simulated,
)
from pruning.costs.accounting import Accounting
from pruning.search.allocation_path import AllocationStrategy
from pruning.search.rounds import Wave
from pruning.search.settings import SearchSettings
from workers.pool.simulated import Pace

COUNTS = (64, 256, 1024)
NUM_BATCHES, BATCH_SIZE = 256, 1
"""With fewer, many evaluators share a batch, and much of what each does is the prefix of its few
candidates.
"""

TARGET = 0.20
BOUNDS = {256: 0.90, 1024: 0.80}
"""Share of the evaluators' time that is scoring."""

NOTES = (
    "All shares are of the evaluators' time, by their own clocks: scoring: candidates, each "
    "counted once; prefixes: the rest of what they run, prefixes of batches and the dense model's "
    "answer on each; waiting: neither.",
    "driver per task: CPU time of its thread, with store.",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One table.

    Args:
        scoring: share of the evaluators' time that went into candidates.
        busy: and into prefixes, too.
        driver_ms: CPU milliseconds of the driver's thread for each task.
    """

    num_evaluators: int
    num_shapes: int
    num_tasks: int
    wall_s: float
    scoring: float
    busy: float
    driver_ms: float


def run(*, counts: Sequence[int] = COUNTS) -> Report:
    """One table for each number of evaluators."""
    config = llama_2_7b()
    pace = pace_of(config, batch_size=BATCH_SIZE)
    outcomes = [measure(config, pace, count) for count in counts]
    settings = {
        "table": (
            f"first round around the uniform shape of {TARGET:g}, {NUM_BATCHES} batches of "
            f"{BATCH_SIZE} x {SEQUENCE_LENGTH} tokens"
        ),
        "evaluators": (
            f"wait {1000 * pace.layer_s:.1f} ms for a layer of a batch and "
            f"{1000 * pace.head_s:.1f} ms for the head ({FLOPS_PER_S / 1e12:g} TFLOP/s); up to "
            f"{PER_HOST} threads share a process"
        ),
        "real": "driver, pool, schedule, Ray and store",
    }
    return Report(
        "allocation_scaling",
        "Scaling: all blocks of Llama-2-7B measured on simulated evaluators",
        settings,
        tuple(row(outcomes[0])),
        tuple(tuple(row(outcome).values()) for outcome in outcomes),
        NOTES,
        tuple(
            f"{each.num_evaluators} evaluators score {each.scoring:.1%} of the time, below "
            f"{BOUNDS[each.num_evaluators]:.0%}"
            for each in outcomes
            if each.scoring < BOUNDS.get(each.num_evaluators, 0.0)
        ),
    )


def row(outcome: Outcome) -> dict[str, str]:
    """Of the table, by the names of its columns."""
    return {
        "evaluators": f"{outcome.num_evaluators:,}",
        "shapes": str(outcome.num_shapes),
        "tasks": f"{outcome.num_tasks:,}",
        "wall": f"{outcome.wall_s:.1f} s",
        "scoring": f"{outcome.scoring:.1%}",
        "prefixes": f"{outcome.busy - outcome.scoring:.1%}",
        "waiting": f"{1 - outcome.busy:.1%}",
        "driver per task": f"{outcome.driver_ms:.2f} ms",
    }


def measure(config: PretrainedConfig, pace: Pace, num_evaluators: int) -> Outcome:
    """The first round of an allocation, until its last score is in the store."""
    wave = first_wave(Accounting(config))
    with simulated(
        config, pace, num_evaluators, num_batches=NUM_BATCHES, batch_size=BATCH_SIZE
    ) as run:
        scorer = run.scorer
        started, thread = time.perf_counter(), time.thread_time()
        found = scorer.score_near("block", wave.base, wave.shapes, "kl")
        wall_s, thread_s = time.perf_counter() - started, time.thread_time() - thread
        assert len(found) == len(wave.shapes)
        num_tasks, total_s = run.num_tasks, wall_s * num_evaluators
        busy = run.launcher.busy_s() / total_s
    return Outcome(
        num_evaluators,
        len(wave.shapes),
        num_tasks,
        wall_s,
        scoring_s(wave, pace) / total_s,
        busy,
        1000 * thread_s / num_tasks,
    )


def first_wave(accounting: Accounting) -> Wave:
    """What `search=allocation` measures first."""
    settings = SearchSettings.resolved(
        accounting.geometry,
        strategy="allocation",
        target_ratio=TARGET,
        distribution=[0.0, 1.0, 1.0],
        compensation="least_squares",
    )
    wave = AllocationStrategy(settings).measuring(accounting).propose()
    assert wave is not None
    return wave


def scoring_s(wave: Wave, pace: Pace) -> float:
    """Seconds that one evaluator takes for the candidates alone: of each, the layers from the one
    that it changes on, and the head.
    """
    num_layers = len(wave.base.layers)
    layers = 0
    for shape in wave.shapes:
        pairs = zip(shape.layers, wave.base.layers, strict=True)
        changed = [layer for layer, (mine, theirs) in enumerate(pairs) if mine != theirs]
        layers += num_layers - changed[0] if changed else 0
    return NUM_BATCHES * (layers * pace.layer_s + len(wave.shapes) * pace.head_s)
