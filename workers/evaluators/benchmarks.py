"""One model, dense or pruned, that answers lm-eval's requests and measures the NLL of token
windows.

A plain class, as `Evaluator` is.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from transformers import PreTrainedModel

from pruning.errors import InputError
from pruning.importance.channel_order import ChannelOrder
from pruning.models.loaded_model import LoadedModel
from pruning.recovery.prepared import prepared
from pruning.scoring.nll import sequence_nll
from pruning.scoring.out_of_memory import is_out_of_memory
from pruning.shape import ModelShape
from workers.evaluators.device import Device
from workers.tasks import (
    AnswerResult,
    AnswerTask,
    BenchmarkSpec,
    EvaluatorInfo,
    RequestTask,
    Task,
    WindowTask,
)

SEED = 1234
"""For tasks that sample: lm-eval's own.

Each task starts from it, so that its answers do not depend on what was answered before.
"""


class BenchmarkEvaluator:
    """Holds one model and answers `RequestTask`s, through lm-eval's own `HFLM`, and `WindowTask`s.

    Args:
        spec: what to load.
        order: unused, since the spec holds it; evaluators of every kind are made alike.
        num_gpus: see `Device`.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(
        self, spec: BenchmarkSpec, order: ChannelOrder | None = None, *, num_gpus: int | None = None
    ) -> None:
        self.spec = spec
        self._device = Device(spec.num_threads, num_gpus)
        self.model = load_model(self._device, spec)
        self._info = self._device.describe(self.model)
        self._harness: Any = None

    def describe(self) -> EvaluatorInfo:
        return self._info

    def set_order(self, order: ChannelOrder) -> None:
        """Does nothing: a model is sorted by the order of its spec, before it is cut.

        Raises:
            ValueError: it is another one.
        """
        if self.spec.order is None or self.spec.order.fingerprint != order.fingerprint:
            raise ValueError(
                "a model that answers requests is sorted when it is made, asked for order "
                f"{order.fingerprint}"
            )

    def run(self, task: Task) -> AnswerResult:
        """Does one task.

        Raises:
            InputError: it does not fit into memory, or into the model's context.
            TypeError: it is one of an `Evaluator`.
        """
        if not isinstance(task, (RequestTask, WindowTask)):
            raise TypeError(f"an evaluator of benchmarks cannot do {task}")
        started = time.perf_counter()
        try:
            answers, num_truncated = (
                self._windows(task) if isinstance(task, WindowTask) else self._requests(task)
            )
        except AssertionError as error:  # how the harness says that a request is not for this model
            raise InputError(self._refused(task, error)) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._device.free_memory()
            raise InputError(self._too_large(task)) from error
        seconds = time.perf_counter() - started
        return AnswerResult(answers, seconds, num_truncated, self._info.arithmetic)

    def _windows(self, task: WindowTask) -> tuple[tuple[float, ...], int]:
        return tuple(
            sequence_nll(
                self.model, torch.tensor(task.input_ids, device=self.model.device)
            ).tolist()
        ), 0

    def _requests(self, task: RequestTask) -> tuple[tuple[Any, ...], int]:
        from lm_eval.api.instance import Instance

        if self._harness is None:
            self._harness = _harness_model(self.model, self.spec)
        instances = [
            Instance(task.kind, {}, arguments, index)
            for index, arguments in enumerate(task.requests)
        ]
        with (
            _counted_truncations() as truncations,
            _without_bars(),
            torch.random.fork_rng(enabled=task.kind == "generate_until"),
        ):
            if task.kind == "generate_until":
                torch.manual_seed(SEED)
            answers = getattr(self._harness, task.kind)(instances, disable_tqdm=True)
        return tuple(answers), truncations.count

    def _refused(self, task: AnswerTask, error: AssertionError) -> str:
        check = traceback.extract_tb(error.__traceback__)[-1].line
        return (
            "evaluation.tasks: lm-eval cannot ask this model, whose requests may have "
            f"{self._harness.max_length} tokens, for {task}: {str(error) or check}. "
            "It refuses what does not fit; leave that task out, or give evaluation.max_length if "
            "the model takes more"
        )

    def _too_large(self, task: AnswerTask) -> str:
        where, advice = (
            f"the memory of {self.describe()}",
            "spread the model over more GPUs with cluster.num_gpus_per_evaluator",
        )
        if isinstance(task, WindowTask):
            rows, tokens = task.input_ids.shape
            return (
                f"evaluation.sequence_length: {rows} x {tokens} tokens do not fit into "
                f"{where}; set a smaller one, or {advice}"
            )
        if self.spec.batch_size > 1:
            return (
                f"evaluation.batch_size: {self.spec.batch_size} requests at a time do not fit "
                f"into {where}; set a smaller one, or {advice}"
            )
        return (
            f"evaluation: a request does not fit into {where} ({task}); set "
            f"evaluation.max_length, or {advice}"
        )


def load_model(device: Device, spec: BenchmarkSpec) -> PreTrainedModel:
    """The pruned model that a shape stands for; the checkpoint itself without one.

    Raises:
        InputError: it cannot be loaded.
    """
    model = device.load(spec.checkpoint, spec.dtype)
    if spec.shape is None:
        return model
    from pruning.export.transformers import pruned_model

    dense = LoadedModel.of(model)
    if spec.order is not None:
        dense = prepared(dense, spec.order)
    return pruned_model(dense, ModelShape.parse(spec.shape))


def _harness_model(model: PreTrainedModel, spec: BenchmarkSpec) -> Any:
    """The official harness's own model around ours, as `lm_eval --model hf` makes it."""
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(
        logging.ERROR
    )  # it warns that a model in memory was given, which is meant
    try:
        return HFLM(
            pretrained=model,
            backend="causal",
            tokenizer=spec.checkpoint.tokenizer(),
            batch_size=spec.batch_size,
            max_length=spec.max_length,
        )
    finally:
        logging.getLogger("lm_eval").setLevel(logging.WARNING)


class _Truncations(logging.Filter):
    """Counts what the harness would say of every single request that is too long."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        truncated = "runcating" in record.getMessage()
        self.count += truncated
        return not truncated


@contextmanager
def _counted_truncations() -> Iterator[_Truncations]:
    logger, truncations = logging.getLogger("lm_eval.models.huggingface"), _Truncations()
    logger.addFilter(truncations)
    try:
        yield truncations
    finally:
        logger.removeFilter(truncations)


@contextmanager
def _without_bars() -> Iterator[None]:
    from lm_eval.models import huggingface

    with without_bars(huggingface):
        yield


@contextmanager
def without_bars(module: ModuleType) -> Iterator[None]:
    """One bar is shown, ours: the harness draws one for every few requests, and not all of them can
    be switched off.
    """
    changed: Any = module
    bar = changed.tqdm
    try:
        changed.tqdm = lambda *args, **options: bar(*args, **options | {"disable": True})
        yield
    finally:
        changed.tqdm = bar
