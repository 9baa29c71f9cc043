"""One dense model that is cut to every size of a block, to time the blocks.

A plain class, as `Evaluator` is.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from pruning.costs.block_times import Levels, Stack, stacks_of, time_blocks
from pruning.costs.latency import BlockTimes
from pruning.errors import InputError
from pruning.export.transformers import contiguous_model
from pruning.importance.channel_order import ChannelOrder
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.out_of_memory import is_out_of_memory
from workers.evaluators.benchmarks import load_model
from workers.evaluators.device import Device
from workers.tasks import BenchmarkSpec, EvaluatorInfo, LatencyTask, Task


class LatencyEvaluator:
    """Holds the dense model and times its blocks.

    Args:
        spec: of the dense model, without a shape.
        order: unused: a block takes the same whichever channels it has.
        num_gpus: see `Device`.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(
        self, spec: BenchmarkSpec, order: ChannelOrder | None = None, *, num_gpus: int | None = None
    ) -> None:
        self._device = Device(spec.num_threads, num_gpus)
        self.model = load_model(self._device, spec)

    def describe(self) -> EvaluatorInfo:
        return self._device.describe(self.model)

    def set_order(self, order: ChannelOrder) -> None:
        """Does nothing: see the class."""

    def run(self, task: Task) -> BlockTimes:
        """Measures.

        Raises:
            InputError: it does not fit into memory.
            TypeError: it is another task.
        """
        if not isinstance(task, LatencyTask):
            raise TypeError(f"an evaluator of latencies cannot do {task}")
        try:
            return time_blocks(self.models(task.levels), task.settings)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._device.free_memory()
            raise InputError(
                f"batch_size: {task.settings.batch_size} sequences of "
                f"{task.settings.context_tokens} tokens do not fit into the memory of "
                f"{self.describe()}; lower it, or prompt_tokens, or measure fewer widths"
            ) from error

    def models(self, levels: Levels) -> dict[Stack, PreTrainedModel]:
        """A model for each stack that tells the levels apart, as an export of it would be loaded:
        narrowed output projections are copies, everything else is the dense model's.
        """
        dense = LoadedModel.of(self.model)
        return {
            stack: contiguous_model(dense, stack.shape(dense.geometry.num_layers))
            for stack in stacks_of(dense.geometry, levels)
        }
