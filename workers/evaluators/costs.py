"""Two models side by side on one device, to compare what they cost.

A plain class, as `Evaluator` is.
"""

from __future__ import annotations

from pruning.costs.measured import Role, SpeedComparison, compare_speed
from pruning.importance.channel_order import ChannelOrder
from workers.evaluators.benchmarks import load_model
from workers.evaluators.device import Device
from workers.tasks import BenchmarkSpec, EvaluatorInfo, SpeedSpec, SpeedTask, Task


class SpeedEvaluator:
    """Holds the dense and the pruned model, or one of them, and measures both in turns.

    Args:
        order: unused, since the specs hold it; evaluators of every kind are made alike.
        num_gpus: see `Device`.

    Raises:
        InputError: a model cannot be loaded.
    """

    def __init__(
        self, spec: SpeedSpec, order: ChannelOrder | None = None, *, num_gpus: int | None = None
    ) -> None:
        self._device = Device(spec.num_threads, num_gpus)
        specs: dict[Role, BenchmarkSpec | None] = {"dense": spec.dense, "pruned": spec.pruned}
        self._models = {
            role: load_model(self._device, each) for role, each in specs.items() if each is not None
        }

    def describe(self) -> EvaluatorInfo:
        return self._device.describe(next(iter(self._models.values())))

    def set_order(self, order: ChannelOrder) -> None:
        """Does nothing: models are sorted by the order of their specs."""

    def run(self, task: Task) -> SpeedComparison:
        """Measures. Raises TypeError for other tasks."""
        if not isinstance(task, SpeedTask):
            raise TypeError(f"an evaluator of speed cannot do {task}")
        return compare_speed(self._models, task.settings, disk_bytes=dict(task.disk_bytes))
