"""How busy evaluators are in a whole search of Llama-2-7B, at sizes that this machine does not
have: they wait as long as they would compute.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PretrainedConfig

from experiments.benchmarks.prefix_reuse import llama_2_7b
from experiments.benchmarks.report import Report
from pipelines.prune.driver import run_search
from pipelines.prune.scorer import Scorer
from pipelines.runs.journal import Journal
from pipelines.store.scores import Context, ScoreStore
from pruning.calibration.token_sets import Calibration, TokenSet
from pruning.costs.accounting import Accounting
from pruning.models.checkpoint import Checkpoint
from pruning.search.greedy import GreedySearch
from pruning.search.stages import make_stages
from pruning.shape import LayerShape, ModelShape
from workers.cluster.placement import Placement
from workers.cluster.ray_session import local_ray
from workers.pool.ray_pool import RayPool
from workers.pool.simulated import Pace, SimulatedLauncher
from workers.tasks import EvaluatorSpec

NUM_BATCHES, BATCH_SIZE, SEQUENCE_LENGTH = 8, 2, 2048
PUBLISHED = {
    "target_ratio": 0.22,
    "distribution": [44.0, 52.0, 4.0],
    "mlp_group_channels": 1024,
    "head_group_channels": 128,
}

FLOPS_PER_S = 140e12
"""Of one evaluator: what an A100 reaches on such matrices, 45 % of its 312 TFLOP/s."""

PACES = {1: 1 / 50, 8: 1 / 5, 64: 1.0, 256: 1.0}
"""Time scale by number of evaluators, so that none takes much longer than two minutes.

Below 1, evaluators are faster than they would be, which is harder on the pool, not easier.
"""

BOUNDS = {8: 0.95, 64: 0.90}
MAX_TASK_MS, MAX_LOOKUP_MS = 3.0, 0.2
PER_HOST = 64

LIMITS = """
What limits 256: a step has 8 batches of 31 to 60 candidates, so 32 evaluators share a batch and have one or two candidates each. Each of them first runs
the prefix of its batch, which is then half of the work or more, and the step lasts as long as its longest candidate. Past it, on paper, in this order:

1. keep the prefix of the step before: two bases differ in one layer, so on average half of the layers of a prefix need not run again;
2. score candidates of the likeliest next step on evaluators that would wait: the store keeps what turns out to be needed;
3. run several targets side by side on one pool;
4. more calibration batches: they use more evaluators without more waiting.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One search.

    Args:
        busy: share of the time that evaluators were at work, prefixes included.
        useful: share of the time that they scored candidates.
        driver_ms: CPU milliseconds of the driver's thread for each task, with search, store and
            journal.
        driver_busy: share of the time that the driver's process, Ray's threads included, was on a
            core.
        lookup_ms: for each (shape, batch).
    """

    num_evaluators: int
    pace: float
    num_steps: int
    num_candidates: int
    num_tasks: int
    wall_s: float
    busy: float
    useful: float
    driver_ms: float
    driver_busy: float
    lookup_ms: float


def run(*, counts: Sequence[int] = tuple(PACES)) -> Report:
    """One search for each number of evaluators."""
    config = llama_2_7b()
    pace = pace_of(config)
    outcomes = [measure(config, pace, count) for count in counts]
    missed = [
        (
            f"{outcome.num_evaluators} evaluators are busy {outcome.busy:.1%} of the time, below "
            f"{BOUNDS[outcome.num_evaluators]:.0%}"
        )
        for outcome in outcomes
        if outcome.busy < BOUNDS.get(outcome.num_evaluators, 0.0)
    ]
    missed += [
        f"{outcome.driver_ms:.2f} ms of the driver for a task, above {MAX_TASK_MS:g}"
        for outcome in outcomes
        if outcome.driver_ms > MAX_TASK_MS
    ]
    missed += [
        f"{outcome.lookup_ms:.3f} ms for a look-up, above {MAX_LOOKUP_MS:g}"
        for outcome in outcomes
        if outcome.lookup_ms > MAX_LOOKUP_MS
    ]
    return Report(
        "scaling",
        "Scaling: a whole search of Llama-2-7B on simulated evaluators",
        {
            "search": (
                f"ratio {PUBLISHED['target_ratio']} as published, {NUM_BATCHES} batches of "
                f"{BATCH_SIZE} x {SEQUENCE_LENGTH} tokens"
            ),
            "evaluators": f"wait {1000 * pace.layer_s:.1f} ms for a layer of a batch and "
            f"{1000 * pace.head_s:.1f} ms for the head "
            f"({FLOPS_PER_S / 1e12:g} TFLOP/s), times the pace; up to {PER_HOST} threads share a "
            "process",
            "real": "driver, pool, schedule, Ray, store and journal",
        },
        (
            "evaluators",
            "pace",
            "steps",
            "candidates",
            "tasks",
            "wall",
            "busy",
            "scoring",
            "driver per task",
            "driver's core",
            "look-up",
        ),
        tuple(_row(outcome) for outcome in outcomes),
        (
            "busy: evaluators at work, by their own clocks; scoring: without the prefixes, of "
            "which each evaluator of a batch runs its own.",
            (
                "driver per task: CPU time of its thread, with search, store and journal; driver's "
                "core: its process, with Ray's threads."
            ),
            "look-up: store.lookup per (shape, batch).",
            LIMITS,
        ),
        tuple(missed),
    )


def measure(config: PretrainedConfig, pace: Pace, num_evaluators: int) -> Outcome:
    """A whole search, from its first step to its last."""
    scale = PACES.get(num_evaluators, 1.0)
    scaled = Pace(pace.layer_s * scale, pace.head_s * scale)
    accounting = Accounting(config)
    search = GreedySearch(accounting, make_stages(accounting, **PUBLISHED))  # type: ignore[arg-type]
    tokens = TokenSet(np.zeros((NUM_BATCHES * BATCH_SIZE, 2), dtype=np.int64))
    with (
        tempfile.TemporaryDirectory() as scratch,
        _pool(config, scaled, num_evaluators, Path(scratch)) as (pool, launcher),
    ):
        pool.describe()
        with ScoreStore(f"sqlite:///{scratch}/scores.db") as store:
            context = Context("m", "", "o", "bfloat16", "simulated", BATCH_SIZE, 1)
            scorer = Scorer(pool, store, Calibration(tokens, tokens, None), context)
            journal = Journal(Path(scratch) / "trajectory.jsonl")
            started, cpu, thread = time.perf_counter(), time.process_time(), time.thread_time()
            run_search(
                search,
                scorer,
                journal,
                accounting=accounting,
                context_length=SEQUENCE_LENGTH,
                on_step=lambda _: None,
            )
            wall_s, cpu_s, thread_s = (
                time.perf_counter() - started,
                time.process_time() - cpu,
                time.thread_time() - thread,
            )
            num_tasks = sum(state.num_tasks for state in pool.states())
            busy_s = launcher.busy_s()
            lookup_ms = _lookup_ms(store, context, tokens, search)
    return Outcome(
        num_evaluators,
        scale,
        len(search.steps),
        sum(len(step.candidates) for step in search.steps),
        num_tasks,
        wall_s,
        busy_s / (wall_s * num_evaluators),
        _scoring_s(search, scaled) / (wall_s * num_evaluators),
        1000 * thread_s / num_tasks,
        cpu_s / wall_s,
        lookup_ms,
    )


def pace_of(config: PretrainedConfig) -> Pace:
    """Seconds of a layer and of a head, from the FLOPs of the configuration."""
    accounting = Accounting(config)
    gone = ModelShape((LayerShape(0, 0),) * config.num_hidden_layers)
    tokens = BATCH_SIZE * SEQUENCE_LENGTH
    head = tokens * accounting.flops_per_token(gone, context_length=SEQUENCE_LENGTH)
    layers = (
        tokens * accounting.flops_per_token(accounting.dense, context_length=SEQUENCE_LENGTH) - head
    )
    return Pace(layers / config.num_hidden_layers / FLOPS_PER_S, head / FLOPS_PER_S)


@contextmanager
def _pool(
    config: PretrainedConfig, pace: Pace, num_evaluators: int, scratch: Path
) -> Iterator[tuple[RayPool, SimulatedLauncher]]:
    config.save_pretrained(scratch / "model")
    spec = EvaluatorSpec(Checkpoint(scratch / "model"), "bfloat16", {}, BATCH_SIZE)
    with local_ray(num_cpus=4, num_gpus=0):
        launcher = SimulatedLauncher(
            config.num_hidden_layers,
            pace,
            num_hosts=-(-num_evaluators // PER_HOST),
            per_host=PER_HOST + 1,
        )
        with RayPool(spec, Placement(num_evaluators, num_gpus=0), launcher=launcher) as pool:
            yield pool, launcher
        launcher.close()


def _lookup_ms(
    store: ScoreStore, context: Context, tokens: TokenSet, search: GreedySearch
) -> float:
    """The first step's look-up, in a store that holds the whole search."""
    step = search.steps[0]
    digests = [
        search.accounting.dense.without(candidate).digest for candidate, _ in step.candidates
    ]
    full = replace(context, tokens=tokens.fingerprint)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        found = store.lookup(full, digests)
        times.append(time.perf_counter() - started)
        assert len(found) == len(digests) * NUM_BATCHES
    return 1000 * sorted(times)[len(times) // 2] / (len(digests) * NUM_BATCHES)


def _scoring_s(search: GreedySearch, pace: Pace) -> float:
    num_layers = len(search.shape.layers)
    candidates = [candidate for step in search.steps for candidate, _ in step.candidates]
    layers = sum(num_layers - candidate.layer for candidate in candidates)
    return NUM_BATCHES * (layers * pace.layer_s + len(candidates) * pace.head_s)


def _row(outcome: Outcome) -> tuple[str, ...]:
    return (
        str(outcome.num_evaluators),
        f"{outcome.pace:g}",
        str(outcome.num_steps),
        f"{outcome.num_candidates:,}",
        f"{outcome.num_tasks:,}",
        f"{outcome.wall_s:.1f} s",
        f"{outcome.busy:.1%}",
        f"{outcome.useful:.1%}",
        f"{outcome.driver_ms:.2f} ms",
        f"{outcome.driver_busy:.0%}",
        f"{outcome.lookup_ms:.4f} ms",
    )
