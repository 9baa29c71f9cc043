"""A cluster whose clock is a heap: evaluators that take as long as their work."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

from pruning.shape import LayerShape, ModelShape, Removal
from workers.pool.running import Running
from workers.pool.schedule import Schedule
from workers.pool.task_times import TaskTimeModel
from workers.prefix import PrefixKey
from workers.tasks import ScoreResult, ScoreTask

LAYERS = 32
LAYER_S, HEAD_S = 0.012, 0.02

BLOCK = tuple(Removal("attention", layer, 0) for layer in range(LAYERS)) + tuple(
    Removal("mlp_channels", layer, 0) for layer in range(LAYERS)
)
WIDTH = tuple(Removal("mlp_channels", layer, 7) for layer in range(LAYERS))


def base(number: int) -> str:
    """Of a step: differs from that of the step before in one layer, at any height."""
    layers = [LayerShape(8, 64)] * LAYERS
    for each in range(number):
        layer = 13 * each % LAYERS
        layers[layer] = LayerShape(8, layers[layer].mlp_channels - 1)
    return ModelShape(tuple(layers)).text


def step(
    candidates: tuple[Removal, ...], num_batches: int = 8, base: str = "base"
) -> list[ScoreTask]:
    """Of one base, on all batches."""
    return [ScoreTask("block", batch, base, candidates, "o") for batch in range(num_batches)]


@dataclass
class Simulation:
    """Evaluators that take as long as their work; some are slower, the `stuck` never answer."""

    num_evaluators: int
    straggler_factors: dict[int, float] = field(default_factory=dict)
    stuck: set[int] = field(default_factory=set)
    overhead_s: float = 0.002
    handout_s: float = 0.0
    task_times: TaskTimeModel = field(default_factory=lambda: TaskTimeModel(LAYERS))
    now: float = 0.0
    busy_s: float = 0.0
    useful_s: float = 0.0
    num_prefix_layers: int = 0
    answered: Counter[tuple[int, Removal | None]] = field(default_factory=Counter)
    num_tasks: int = 0
    longest_s: float = 0.0
    held: dict[int, PrefixKey] = field(default_factory=dict)
    _events: list[tuple[float, int, Schedule, Running, ScoreResult]] = field(default_factory=list)
    _working: set[int] = field(default_factory=set)

    def run(self, tasks: list[ScoreTask]) -> float:
        """Seconds that one step takes.

        Copies of tasks that are not needed any more go on after its end, as in the pool.
        """
        started, schedule = self.now, Schedule(tasks, self.task_times)
        self._hand_out(schedule)
        while not schedule.finished:
            looks_at = self.now + 1.0  # as the pool does every second
            if not self._events or self._events[0][0] > looks_at:
                self.now = looks_at
            else:
                due, evaluator, owner, running, result = heapq.heappop(self._events)
                self.now = max(self.now, due)  # the driver may have been handing out
                self._working.remove(evaluator)
                if owner.done(evaluator, running, result, self.now) and owner is schedule:
                    self.answered.update(
                        (running.task.batch, candidate) for candidate in running.task.candidates
                    )  # type: ignore[union-attr]
            self._hand_out(schedule)
        return self.now - started

    def prefix_layers(self, evaluator: int, task: ScoreTask) -> int:
        """That an evaluator runs, from what it holds."""
        text, batch, held = self.held.get(evaluator, ("", -1, ""))
        if (text, batch) != (task.set_name, task.batch):
            return LAYERS
        if held == task.base:
            return 0
        mine, asked = (ModelShape.parse(each).layers for each in (held, task.base))
        return LAYERS - next(n for n in range(LAYERS) if mine[n] != asked[n])

    def _hand_out(self, schedule: Schedule) -> None:
        exhausted = False
        for evaluator in sorted(
            set(range(self.num_evaluators)) - self._working, key=self.task_times.straggler_factor
        ):
            if exhausted and not schedule.continues(self.held.get(evaluator)):
                continue
            running = schedule.next(
                evaluator, self.num_evaluators, self.held.get(evaluator), self.now
            )
            if running is None:
                exhausted = True
                continue
            self.now += self.handout_s
            task = running.task
            assert isinstance(task, ScoreTask)
            num_run = self.prefix_layers(evaluator, task)
            layers = sum(LAYERS - candidate.layer for candidate in task.candidates if candidate)
            self.num_prefix_layers += num_run
            seconds = (layers + num_run) * LAYER_S + len(task.candidates) * HEAD_S
            self.useful_s += layers * LAYER_S + len(task.candidates) * HEAD_S
            seconds *= self.straggler_factors.get(evaluator, 1.0)
            self.longest_s = max(self.longest_s, seconds)
            self.busy_s += seconds
            self.num_tasks += 1
            self.held[evaluator] = task.prefix_key
            result = ScoreResult((), 1, seconds, num_run)
            self._working.add(evaluator)
            if evaluator not in self.stuck:
                heapq.heappush(
                    self._events,
                    (self.now + self.overhead_s + seconds, evaluator, schedule, running, result),
                )


def whole_search(simulation: Simulation, block_steps: int = 4, width_steps: int = 8) -> float:
    """Seconds of some steps; every candidate must be answered once in each."""
    seconds = 0.0
    for number in range(block_steps + width_steps):
        candidates = BLOCK[number:] if number < block_steps else WIDTH
        simulation.answered.clear()
        seconds += simulation.run(step(candidates, base=base(number)))
        assert simulation.answered == {
            (batch, candidate): 1 for batch in range(8) for candidate in candidates
        }
    return seconds
