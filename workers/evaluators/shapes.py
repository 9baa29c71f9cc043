"""One dense model that scores tasks.

A plain class: where it runs and with which resources is decided by who creates it.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from pruning.compensation.least_squares import compensation_of
from pruning.compensation.statistics import collect_statistics, layer_order
from pruning.errors import InputError
from pruning.importance.block_influence import LayerSimilarity, layer_similarity
from pruning.importance.channel_order import ChannelOrder, channel_order, reorder
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.generation import continuations
from pruning.scoring.kl import DenseOutputs, dense_outputs, divergence
from pruning.scoring.nll import Prefix, run_prefix, score_candidates
from pruning.scoring.out_of_memory import is_out_of_memory
from pruning.scoring.prefix_reuse import require_prefix_reuse
from pruning.scoring.residual import require_plain_residual
from pruning.shape import ModelShape
from workers.evaluators.device import Device
from workers.prefix import PrefixKey, missing_layers
from workers.tasks import (
    Continuations,
    EvaluatorInfo,
    EvaluatorSpec,
    GenerationTask,
    InfluenceTask,
    OrderTask,
    Result,
    ScoreResult,
    ScoreTask,
    StatisticsResult,
    StatisticsTask,
    Task,
)

log = logging.getLogger(__name__)

_ADVICE = (
    "set a smaller calibration.sequence_length, or spread the model over more GPUs with "
    "cluster.num_gpus_per_evaluator"
)


class Evaluator:
    """Holds one dense model and answers tasks.

    Args:
        spec: what to load.
        order: channel order to sort the weights by; None until it is known, and then `set_order`.
        num_gpus: see `Device`.

    Raises:
        InputError: the model cannot be loaded, or its family does not behave as scoring needs.
    """

    def __init__(
        self, spec: EvaluatorSpec, order: ChannelOrder | None = None, *, num_gpus: int | None = None
    ) -> None:
        self.spec = spec
        self._device = Device(spec.num_threads, num_gpus)
        self.dense = LoadedModel.of(self._device.load(spec.checkpoint, spec.dtype))
        self._order: ChannelOrder | None = None
        self._prefix: tuple[PrefixKey, Prefix] | None = None
        self._dense_outputs: tuple[torch.Tensor, DenseOutputs] | None = None
        require_plain_residual(self.dense)
        require_prefix_reuse(self.dense, self._batch(next(iter(spec.token_sets)), 0)[:1, :8])
        self._info = self._device.describe(self.dense.model)
        if order is not None:
            self.set_order(order)

    def describe(self) -> EvaluatorInfo:
        return self._info

    def set_order(self, order: ChannelOrder) -> None:
        """Sorts the weights, from whatever order they are in. Asking for that one does nothing."""
        if self._order is not None and self._order.fingerprint == order.fingerprint:
            return
        # They may be views of weights that move now.
        self._prefix = self._dense_outputs = None
        reorder(self.dense, order if self._order is None else order.after(self._order))
        self.dense = replace(self.dense, compensation=compensation_of(order, self.dense.geometry))
        self._order = order

    def run(self, task: Task) -> Result:
        """Does one task.

        Raises:
            TypeError: it is one of a `BenchmarkEvaluator`.
        """
        match task:
            case ScoreTask():
                return self._score(task)
            case OrderTask():
                return self._find_order(task)
            case StatisticsTask():
                return self._find_statistics(task)
            case InfluenceTask():
                return self._find_influence(task)
            case GenerationTask():
                return self._generate(task)
        raise TypeError(f"an evaluator of shapes cannot do {task}")

    # Scores.

    def _score(self, task: ScoreTask) -> ScoreResult:
        self._check_order(task.order)
        started = time.perf_counter()
        base = ModelShape.parse(task.base)
        candidates = [base.changed(candidate) for candidate in task.candidates]
        num_run = self._missing_layers(task, base)
        try:
            # No name for the prefix here: this frame would hold it while the halves are scored.
            nll, oom_split = self._scores(task, self._prefix_of(task, base), candidates), False
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
            nll, oom_split = self._score_in_halves(task, base, candidates, error), True
        return ScoreResult(
            tuple(tuple(row) for row in nll.tolist()),
            num_tokens=len(self.spec.token_sets[task.set_name][0]) - 1,
            seconds=time.perf_counter() - started,
            prefix_layers=len(base.layers) if oom_split else num_run,
            oom_split=oom_split,
            arithmetic=self._info.arithmetic,
        )

    def _scores(
        self, task: ScoreTask, prefix: Prefix, candidates: Sequence[ModelShape]
    ) -> torch.Tensor:
        """[candidates, B] float64 of the kind that the task asks for."""
        if task.kind == "nll":
            return score_candidates(self.dense, prefix, candidates)
        return divergence(self.dense, prefix, self._dense_outputs_of(prefix), candidates)[0]

    def _score_in_halves(
        self, task: ScoreTask, base: ModelShape, candidates: Sequence[ModelShape], cause: Exception
    ) -> torch.Tensor:
        """The same sequences in the same order, half of them at a time.

        The next task is tried whole again.
        """
        self._free_memory()
        tokens_BT = self._batch(task.set_name, task.batch)
        num_sequences, num_tokens = tokens_BT.shape
        if num_sequences == 1:
            raise InputError(
                f"calibration: one sequence of {num_tokens} tokens does not fit into the memory of "
                f"{self.describe()}; {_ADVICE}"
            ) from cause
        log.warning(
            "out of memory with %d sequences at a time: scoring them in two halves, which can "
            "change the last digits",
            num_sequences,
        )
        halves = []
        try:
            for half_BT in tokens_BT.split((num_sequences + 1) // 2):
                prefix = run_prefix(self.dense, base, half_BT)
                halves.append(self._scores(task, prefix, candidates))
                del prefix
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._free_memory()
            raise InputError(
                f"calibration.batch_size: {self.spec.batch_size} sequences of {num_tokens} tokens "
                f"do not fit into the memory of {self.describe()}, nor do half of them; set a "
                "smaller one (it is part of every score's key, so scores are computed anew), or "
                f"{_ADVICE}"
            ) from error
        return torch.cat(halves, dim=1)

    # What is kept from one task to the next, which is often for the same batch.

    def _prefix_of(self, task: ScoreTask, base: ModelShape) -> Prefix:
        if self._prefix is None or self._prefix[0] != task.prefix_key:
            num_known = len(base.layers) - self._missing_layers(task, base)
            known = self._prefix[1].layer_outputs[:num_known] if self._prefix else ()
            self._prefix = None  # what nobody needs of the old one goes before the new one comes
            tokens_BT = self._batch(task.set_name, task.batch)
            self._prefix = (task.prefix_key, run_prefix(self.dense, base, tokens_BT, known))
        return self._prefix[1]

    def _missing_layers(self, task: ScoreTask, base: ModelShape) -> int:
        held = self._prefix[0] if self._prefix else None
        return missing_layers(task.prefix_key, held, len(base.layers))

    def _dense_outputs_of(self, prefix: Prefix) -> DenseOutputs:
        key = prefix.input_ids_BT
        if self._dense_outputs is None or not torch.equal(self._dense_outputs[0], key):
            self._dense_outputs = None
            self._dense_outputs = (key, dense_outputs(self.dense, key))
        return self._dense_outputs[1]

    def _free_memory(self) -> None:
        self._prefix = self._dense_outputs = None
        self._device.free_memory()

    # What is measured on the dense model.

    def _find_order(self, task: OrderTask) -> ChannelOrder:
        self._sort_as_stored()
        return channel_order(self.dense, task.importance, self._batches(task.set_name))

    def _find_statistics(self, task: StatisticsTask) -> StatisticsResult:
        self._sort_as_stored()
        layers = collect_statistics(self.dense, self._batches(task.set_name), task.layers)
        orders = {
            layer: layer_order(self.dense, layer, statistics)
            for layer, statistics in layers.items()
        }
        return StatisticsResult(layers, orders, self.spec.token_sets[task.set_name].size)

    def _find_influence(self, task: InfluenceTask) -> LayerSimilarity:
        self._check_order(task.order)
        return layer_similarity(self.dense, self._batch(task.set_name, task.batch))

    def _generate(self, task: GenerationTask) -> Continuations:
        self._check_order(task.order)
        prompts = [torch.tensor([prompt], device=self._device.torch) for prompt in task.prompts]
        shape = ModelShape.parse(task.shape)
        return continuations(self.dense, shape, prompts, num_tokens=task.num_tokens)

    def _sort_as_stored(self) -> None:
        """Undoes what a search before this one sorted: sums over channels in another order have
        other last digits.
        """
        if self._order is not None:
            self.set_order(ChannelOrder.as_stored(self.dense.geometry))

    def _check_order(self, asked: str) -> None:
        if self._order is None or asked != self._order.fingerprint:
            raise ValueError(
                f"the task is for channel order {asked}, the weights are in "
                f"{self._order and self._order.fingerprint}"
            )

    # The calibration sets.

    def _batches(self, name: str) -> Iterator[torch.Tensor]:
        """A whole one, in its order."""
        num_batches = -(-len(self.spec.token_sets[name]) // self.spec.batch_size)
        return (self._batch(name, index) for index in range(num_batches))

    def _batch(self, name: str, index: int) -> torch.Tensor:
        start, size = index * self.spec.batch_size, self.spec.batch_size
        rows_BT = self.spec.token_sets[name][start : start + size]
        return torch.tensor(rows_BT, device=self._device.torch)
