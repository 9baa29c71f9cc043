"""Runs of models with a clock, in turns, so that background load affects all of them equally.

Shape letters: B sequences of a batch, T tokens of the prompt.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from pruning.costs.speed import SpeedSettings
from pruning.errors import ScoringError

_Name = TypeVar("_Name")


@dataclass(frozen=True, slots=True, eq=False)
class TimedRun:
    """One prefill and the decoding after it.

    `tokens` is int64 [B, 1 + new tokens]: the first is the prefill's.
    """

    tokens: torch.Tensor
    prefill_s: float
    decode_s: float
    kv_cache_bytes_per_token: int
    kv_cache_bytes: int
    peak_above_bytes: int


@torch.inference_mode()
def timed_runs(
    models: Mapping[_Name, PreTrainedModel],
    settings: SpeedSettings,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[_Name, list[TimedRun]]:
    """Runs of every model, one a round, after one of each that is not returned.

    The models take turns, in one order in a round and in the opposite one in the next.

    Args:
        models: in evaluation mode, on their devices, all in memory together. Any causal language
            model of transformers that returns its KV cache.
        clock: seconds, read before the prefill, between it and the decoding, and after that, in the
            runs that are not returned too.

    Raises:
        ScoringError: a model returns no KV cache.
    """
    vocabulary = min(len(_embedding(model)) for model in models.values())
    generator = torch.Generator().manual_seed(settings.seed)
    prompt_BT = torch.randint(
        vocabulary, (settings.batch_size, settings.prompt_tokens), generator=generator
    )
    run = partial(timed_run, prompt_BT=prompt_BT, new_tokens=settings.new_tokens, clock=clock)
    for model in models.values():
        run(model)
    runs: dict[_Name, list[TimedRun]] = {name: [] for name in models}
    for number in range(settings.rounds):
        for name in models if number % 2 == 0 else reversed(list(models)):
            runs[name].append(run(models[name]))
    return runs


def timed_run(
    model: PreTrainedModel, prompt_BT: torch.Tensor, new_tokens: int, clock: Callable[[], float]
) -> TimedRun:
    """Greedy and token by token, with the model's own cache.

    Each argmax stays on its device, so that no step waits for the one before.
    """
    gpus = gpus_of(model)
    input_ids = prompt_BT.to(_embedding(model).device)
    options = {"use_cache": True} | (
        {"logits_to_keep": 1}
        if "logits_to_keep" in inspect.signature(model.forward).parameters
        else {}
    )
    before = _start_peak(gpus)
    _synchronize(gpus)
    started = clock()
    outputs = model(input_ids=input_ids, **options)
    tokens = [outputs.logits[:, -1:].argmax(dim=-1).to(input_ids.device)]
    _synchronize(gpus)
    prefilled = clock()
    for _ in range(new_tokens):
        outputs = model(input_ids=tokens[-1], past_key_values=outputs.past_key_values, **options)
        tokens.append(outputs.logits[:, -1:].argmax(dim=-1).to(input_ids.device))
    _synchronize(gpus)
    decoded = clock()
    peak_above_bytes = sum(torch.cuda.max_memory_allocated(gpu) for gpu in gpus) - before
    per_token, total = _cache_bytes(model, outputs.past_key_values, len(prompt_BT))
    return TimedRun(
        torch.cat(tokens, dim=1).cpu(),
        prefilled - started,
        decoded - prefilled,
        per_token,
        total,
        peak_above_bytes,
    )


def _cache_bytes(model: PreTrainedModel, cache: Any, batch_size: int) -> tuple[int, int]:
    """Bytes that one token of one sequence takes in the cache, and bytes of all that it holds.

    Keys and values are [B, heads, tokens, head size]. Each layer is divided by the tokens that it
    holds, since sliding windows hold fewer. A layer without attention holds one number for each
    token (see `pruning.export.modeling_pruned.NoMixing`), which is neither key nor value.
    """
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise ScoringError(
            f"{type(model).__name__} returns {type(cache).__name__} for past_key_values; "
            "expected a Cache of transformers with layers"
        )
    held = [
        tensor
        for layer in layers
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if tensor is not None and tensor.numel() and tensor.shape[1] * tensor.shape[3] > 1
    ]
    return sum(tensor.nbytes // (batch_size * tensor.shape[-2]) for tensor in held), sum(
        tensor.nbytes for tensor in held
    )


def _embedding(model: PreTrainedModel) -> torch.Tensor:
    """[vocabulary, hidden size], on the device that token ids go to."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight


def gpus_of(model: PreTrainedModel) -> list[torch.device]:
    """The CUDA devices that hold a part of the model."""
    return sorted(
        {parameter.device for parameter in model.parameters() if parameter.is_cuda},
        key=lambda device: device.index,
    )


def _start_peak(gpus: list[torch.device]) -> int:
    """Bytes allocated now, from which on peaks are kept."""
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    return sum(torch.cuda.memory_allocated(gpu) for gpu in gpus)


def _synchronize(gpus: list[torch.device]) -> None:
    for gpu in gpus:
        torch.cuda.synchronize(gpu)
