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
from pruning.search.settings import SearchSettings
from pruning.shape import LayerShape, ModelShape
from workers.cluster.placement import Placement
from workers.cluster.ray_session import local_ray
from workers.pool.ray_pool import RayPool
from workers.pool.simulated import Pace, SimulatedLauncher
from workers.tasks import EvaluatorSpec

NUM_SEQUENCES, SEQUENCE_LENGTH = 16, 2048
BATCH_SIZES = (2, 1)
"""Sequences that are scored together: fewer make more batches of the same text."""

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

BOUNDS = {64: 0.85, 256: 0.60}
"""Share of the evaluators' time that is scoring."""

MAX_TASK_MS, MAX_LOOKUP_MS = 1.0, 0.2
PER_HOST = 64

LIMITS = """
What limits 256: a step has 16 batches of 31 to 60 candidates, so 16 evaluators share a batch and
have two to four candidates each. Each of them first runs the layers of the prefix above the last
change, and the step lasts as long as its longest task. Past it, on paper: score candidates of the
likeliest next step on evaluators that would wait, run several targets side by side on one pool, or
take more text, which uses more evaluators without more waiting.
"""
NOTES = (
    "All shares are of the evaluators' time, by their own clocks: scoring: candidates, each "
    "counted once; prefixes: the rest of what they run, with late tasks that run a second time; "
    "waiting: neither.",
    "driver per task: CPU time of its thread, with search, store and journal; driver's core: its "
    "process, with Ray's threads.",
    "look-up: store.lookup per (shape, batch).",
    LIMITS,
)


@dataclass(frozen=True, slots=True)
class Shares:
    """What the evaluators' time went into, of 1.

    Args:
        scoring: candidates, each counted once.
        prefixes: whatever else they ran.
    """

    scoring: float
    prefixes: float

    @classmethod
    def of(
        cls,
        search: GreedySearch,
        pace: Pace,
        *,
        num_batches: int,
        busy_s: float,
        total_s: float,
    ) -> Shares:
        """Of a whole search.

        Args:
            busy_s: all evaluators together.
            total_s: as long as the search took, times their number.
        """
        num_layers = len(search.shape.layers)
        candidates = [candidate for step in search.steps for candidate, _ in step.candidates]
        layers = sum(num_layers - candidate.layer for candidate in candidates)
        scoring_s = num_batches * (layers * pace.layer_s + len(candidates) * pace.head_s)
        return cls(scoring_s / total_s, (busy_s - scoring_s) / total_s)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One search.

    Args:
        driver_ms: CPU milliseconds of the driver's thread for each task, with search, store and
            journal.
        driver_busy: share of the time that the driver's process, Ray's threads included, was on a
            core.
        lookup_ms: for each (shape, batch).
    """

    num_evaluators: int
    batch_size: int
    pace: float
    num_steps: int
    num_candidates: int
    num_tasks: int
    wall_s: float
    shares: Shares
    driver_ms: float
    driver_busy: float
    lookup_ms: float


def run(*, counts: Sequence[int] = tuple(PACES)) -> Report:
    """One search for each number of evaluators and each size of a batch."""
    config = llama_2_7b()
    outcomes = [measure(config, count, size) for count in counts for size in BATCH_SIZES]
    pace = pace_of(config, batch_size=1)
    settings = {
        "search": (
            f"ratio {PUBLISHED['target_ratio']} as published, {NUM_SEQUENCES} sequences of "
            f"{SEQUENCE_LENGTH} tokens"
        ),
        "evaluators": (
            f"wait {1000 * pace.layer_s:.1f} ms for a layer of a sequence and "
            f"{1000 * pace.head_s:.1f} ms for the head ({FLOPS_PER_S / 1e12:g} TFLOP/s), times the "
            f"pace; up to {PER_HOST} threads share a process"
        ),
        "real": "driver, pool, schedule, Ray, store and journal",
    }
    return Report(
        "scaling",
        "Scaling: a whole search of Llama-2-7B on simulated evaluators",
        settings,
        tuple(row(outcomes[0])),
        tuple(tuple(row(outcome).values()) for outcome in outcomes),
        NOTES,
        tuple(sentence for outcome in outcomes for sentence in missed(outcome)),
    )


def row(outcome: Outcome) -> dict[str, str]:
    """Of the table, by the names of its columns."""
    shares = outcome.shares
    return {
        "evaluators": str(outcome.num_evaluators),
        "batches": f"{NUM_SEQUENCES // outcome.batch_size} of {outcome.batch_size}",
        "pace": f"{outcome.pace:g}",
        "steps": str(outcome.num_steps),
        "candidates": f"{outcome.num_candidates:,}",
        "tasks": f"{outcome.num_tasks:,}",
        "wall": f"{outcome.wall_s:.1f} s",
        "scoring": f"{shares.scoring:.1%}",
        "prefixes": f"{shares.prefixes:.1%}",
        "waiting": f"{1 - shares.scoring - shares.prefixes:.1%}",
        "driver per task": f"{outcome.driver_ms:.2f} ms",
        "driver's core": f"{outcome.driver_busy:.0%}",
        "look-up": f"{outcome.lookup_ms:.4f} ms",
    }


def missed(outcome: Outcome) -> list[str]:
    """Bounds that do not hold, one sentence each."""
    found = []
    bound = BOUNDS.get(outcome.num_evaluators, 0.0)
    if outcome.shares.scoring < bound:
        found.append(
            f"{outcome.num_evaluators} evaluators score {outcome.shares.scoring:.1%} of the time, "
            f"below {bound:.0%}"
        )
    if outcome.driver_ms > MAX_TASK_MS:
        found.append(f"{outcome.driver_ms:.2f} ms of the driver for a task, above {MAX_TASK_MS:g}")
    if outcome.lookup_ms > MAX_LOOKUP_MS:
        found.append(f"{outcome.lookup_ms:.3f} ms for a look-up, above {MAX_LOOKUP_MS:g}")
    return found


def measure(config: PretrainedConfig, num_evaluators: int, batch_size: int) -> Outcome:
    """A whole search, from its first step to its last."""
    pace, num_batches = pace_of(config, batch_size=batch_size), NUM_SEQUENCES // batch_size
    scale = PACES.get(num_evaluators, 1.0)
    scaled = Pace(pace.layer_s * scale, pace.head_s * scale)
    accounting = Accounting(config)
    settings = SearchSettings.resolved(accounting.geometry, **PUBLISHED)  # type: ignore[arg-type]
    search = GreedySearch(accounting, settings)
    with simulated(
        config, scaled, num_evaluators, num_batches=num_batches, batch_size=batch_size
    ) as run:
        journal = Journal(run.folder / "trajectory.jsonl")
        started, cpu, thread = time.perf_counter(), time.process_time(), time.thread_time()
        run_search(
            search,
            run.scorer,
            journal,
            accounting=accounting,
            context_length=SEQUENCE_LENGTH,
            on_step=lambda _: None,
        )
        wall_s = time.perf_counter() - started
        cpu_s, thread_s = time.process_time() - cpu, time.thread_time() - thread
        num_tasks, busy_s = run.num_tasks, run.launcher.busy_s()
        lookup_ms = _lookup_ms(run, search, num_batches)
    return Outcome(
        num_evaluators,
        batch_size,
        scale,
        len(search.steps),
        sum(len(step.candidates) for step in search.steps),
        num_tasks,
        wall_s,
        Shares.of(
            search,
            scaled,
            num_batches=num_batches,
            busy_s=busy_s,
            total_s=wall_s * num_evaluators,
        ),
        1000 * thread_s / num_tasks,
        cpu_s / wall_s,
        lookup_ms,
    )


def pace_of(config: PretrainedConfig, *, batch_size: int) -> Pace:
    """Seconds of a layer and of a head, from the FLOPs of the configuration."""
    accounting = Accounting(config)
    gone = ModelShape((LayerShape(0, 0),) * config.num_hidden_layers)
    tokens = batch_size * SEQUENCE_LENGTH
    head, whole = (
        accounting.flops_per_token(shape, context_length=SEQUENCE_LENGTH)
        for shape in (gone, accounting.dense)
    )
    assert head is not None
    assert whole is not None
    head, layers = tokens * head, tokens * (whole - head)
    return Pace(layers / config.num_hidden_layers / FLOPS_PER_S, head / FLOPS_PER_S)


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """Real machinery whose evaluators wait, with what started them."""

    folder: Path
    pool: RayPool
    launcher: SimulatedLauncher
    store: ScoreStore
    context: Context
    calibration: Calibration

    @property
    def scorer(self) -> Scorer:
        return Scorer(self.pool, self.store, self.calibration, self.context)

    @property
    def num_tasks(self) -> int:
        """Done so far."""
        return sum(state.num_tasks for state in self.pool.states())


@contextmanager
def simulated(
    config: PretrainedConfig,
    pace: Pace,
    num_evaluators: int,
    *,
    num_batches: int,
    batch_size: int,
) -> Iterator[Simulation]:
    """A pool whose evaluators are all there, and an empty store."""
    tokens = TokenSet(np.zeros((num_batches * batch_size, 2), dtype=np.int64))
    with tempfile.TemporaryDirectory() as scratch, local_ray(num_cpus=4, num_gpus=0):
        folder = Path(scratch)
        config.save_pretrained(folder / "model")
        spec = EvaluatorSpec(Checkpoint(folder / "model"), "bfloat16", {}, batch_size)
        launcher = SimulatedLauncher(
            config.num_hidden_layers,
            pace,
            num_hosts=-(-num_evaluators // PER_HOST),
            per_host=PER_HOST + 1,
        )
        with (
            RayPool(spec, Placement(num_evaluators, num_gpus=0), launcher=launcher) as pool,
            ScoreStore(f"sqlite:///{folder}/scores.db") as store,
        ):
            pool.describe()
            context = Context(
                model="m",
                tokens="",
                order="o",
                dtype="bfloat16",
                batch_size=batch_size,
                arithmetic=pool.arithmetic,
            )
            calibration = Calibration(tokens, tokens, None)
            yield Simulation(folder, pool, launcher, store, context, calibration)
        launcher.close()


def _lookup_ms(run: Simulation, search: GreedySearch, num_batches: int) -> float:
    """The first step's look-up, in a store that holds the whole search."""
    step = search.steps[0]
    digests = [
        search.accounting.dense.without(candidate).digest for candidate, _ in step.candidates
    ]
    full = replace(run.context, tokens=run.calibration.block.fingerprint)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        found = run.store.lookup(full, digests)
        times.append(time.perf_counter() - started)
        assert len(found) == len(digests) * num_batches
    return 1000 * sorted(times)[len(times) // 2] / (len(digests) * num_batches)
