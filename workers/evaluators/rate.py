"""The rate of an evaluator, measured before there is one.

Sizes decide what a matrix product takes, and values do not: one layer of the model and its head are
made from the configuration, with weights drawn at random, and run as a search runs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
from transformers import PretrainedConfig, PreTrainedModel

from pruning.costs.accounting import Accounting
from pruning.models.families import family_of
from pruning.models.meta_model import meta_model
from pruning.scoring.nll import sequence_nll
from workers.evaluators.device import Device

MEASURED_S = 5.0
_FIRST_TOKENS = 32
_NUM_VALUES = 1_000_003


@dataclass(frozen=True, slots=True)
class MeasuredRate:
    """What an evaluator does when it is alone on its device.

    Args:
        tflops: 10^12 floating-point operations per second, as `Accounting` counts them.
        seconds: that measuring took.
        num_sequences: of the batch that was run: that of the search, or as much of it as there was
            time for.
        sequence_length: its tokens.
    """

    tflops: float
    seconds: float
    num_sequences: int
    sequence_length: int


@torch.inference_mode()
def measure_rate(
    config: PretrainedConfig,
    accounting: Accounting,
    dtype: str,
    *,
    num_threads: int,
    num_gpus: int,
    batch_size: int,
    sequence_length: int,
    seconds: float = MEASURED_S,
    clock: Callable[[], float] = time.perf_counter,
) -> MeasuredRate:
    """Runs growing parts of a batch until the next would not fit into the time, and that one as
    often as it does.

    The rate is that of a candidate in the middle of the model, which runs half of the layers and
    the head.

    Args:
        accounting: of `config`; it knows the FLOPs of a layer.
        num_threads: CPU threads of the evaluator, in this process, too, for that time.
        num_gpus: see `Device`.
        seconds: that it takes, about; the first and smallest run is not counted.
        clock: seconds, read three times in each run.
    """
    num_layers, threads = accounting.geometry.num_layers, torch.get_num_threads()
    index, layers = num_layers // 2, (num_layers + 1) / 2
    device = Device(num_threads, num_gpus)
    run = None
    try:
        run = _Runs(one_layer_model(config, index, dtype, device.torch), device.torch, clock)
        parts = list(parts_of(batch_size, sequence_length))
        run.once(*parts[0])
        started, number = clock(), 0
        times = [run.once(*parts[0])]
        while (left := seconds - (clock() - started)) > sum(times[-1]):
            if number + 1 < len(parts) and left > 4 * sum(times[-1]):  # twice the work, and again
                number += 1
                times = []
            times.append(run.once(*parts[number]))
        taken = clock() - started
    finally:
        torch.set_num_threads(threads)
        run = None  # or its memory is not free
        device.free_memory()
    num_sequences, length = parts[number]
    flops = accounting.layer_flops(index, accounting.dense.layers[index], context_length=length)
    assert flops is not None
    work = num_sequences * length * (layers * flops + 2 * (accounting.head_weights or 0))
    alone, with_head = (median(each) for each in zip(*times, strict=True))
    tflops = work / (((layers - 1) * alone + with_head) * 1e12)
    return MeasuredRate(tflops, taken, num_sequences, length)


def parts_of(batch_size: int, sequence_length: int) -> Iterator[tuple[int, int]]:
    """(sequences, tokens of each) of growing parts of a batch, each at most twice the one before:
    the beginning of one sequence, then whole ones.
    """
    length, count = min(_FIRST_TOKENS, sequence_length), 1
    while length < sequence_length:
        yield 1, length
        length = min(2 * length, sequence_length)
    while count < batch_size:
        yield count, sequence_length
        count = min(2 * count, batch_size)
    yield batch_size, sequence_length


@torch.inference_mode()
def one_layer_model(
    config: PretrainedConfig, index: int, dtype: str, device: torch.device
) -> PreTrainedModel:
    """Embedding, layer `index` and head of a model, with weights drawn at random; its tokens are
    looked up in the weights of the head, so that there is one such matrix.
    """
    model = meta_model(config)
    assert isinstance(model, PreTrainedModel)
    layers = family_of(config, model).decoder_layers(model)
    kept = layers[index]
    del layers[:]
    layers.append(kept)
    model.to(getattr(torch, dtype)).to_empty(device=device).eval()
    head = model.get_output_embeddings()
    if head is not None:
        model.get_input_embeddings().weight = head.weight
    values = torch.randn(_NUM_VALUES, device=device, dtype=getattr(torch, dtype)) / 50
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_floating_point():
            tensor.zero_()
            continue
        for part in tensor.view(-1).split(_NUM_VALUES):  # drawing billions would take too long
            part.copy_(values[: len(part)])
    return model


class _Runs:
    """Runs of one model with a clock."""

    def __init__(
        self, model: PreTrainedModel, device: torch.device, clock: Callable[[], float]
    ) -> None:
        self._model, self._device, self._clock = model, device, clock

    def once(self, num_sequences: int, length: int) -> tuple[float, float]:
        """Seconds of the layer alone, and of the layer with the head."""
        vocabulary = int(self._model.config.get_text_config().vocab_size)
        ids_BT = torch.randint(vocabulary, (num_sequences, length), device=self._device)
        started = self._now()
        self._model.base_model(input_ids=ids_BT, use_cache=False)
        between = self._now()
        sequence_nll(self._model, ids_BT)
        return between - started, self._now() - between

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()
