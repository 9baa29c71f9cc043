"""How much time the reused prefix saves: one block step scored from the changed layer up, against
from the embedding up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from transformers import AutoConfig, PretrainedConfig

from experiments.benchmarks import workload
from experiments.benchmarks.report import Report, median_speedup, rounds_table
from pruning.costs.accounting import Accounting
from pruning.models.dtypes import resolve_dtype
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.scoring.nll import run_prefix, score_candidates, sequence_nll
from pruning.search.greedy import candidates_of
from pruning.search.stages import Stage
from pruning.shape import LayerShape, ModelShape

T = TypeVar("T")

NUM_SEQUENCES, SEQUENCE_LENGTH = 2, 128
BOUND = 0.9
"""The speed-up must be at least this share of what the FLOP count allows."""


def run(*, dtype: str = "auto", num_rounds: int = 3) -> Report:
    """Scores one block step of SmolLM2 both ways, on one thread."""
    with one_batch(dtype) as (dense, input_ids_BT, settings):
        accounting = Accounting(dense.model.config)
        candidates = block_candidates(accounting)
        rounds = [measure(dense, candidates, input_ids_BT) for _ in range(num_rounds)]
    settings |= {
        "candidates": f"{len(candidates)}, all of the first block step",
    }
    return _report(settings, rounds, allowed_speedup(accounting, candidates, SEQUENCE_LENGTH))


@contextmanager
def one_batch(dtype: str) -> Iterator[tuple[LoadedModel, torch.Tensor, dict[str, str]]]:
    """SmolLM2 on one thread with a batch of text, and what a report says of them."""
    checkpoint = workload.checkpoint()
    dtype = resolve_dtype(dtype, on_gpu=False)
    text, tokens = workload.calibration(checkpoint, NUM_SEQUENCES, SEQUENCE_LENGTH)
    size = f"{NUM_SEQUENCES} x {SEQUENCE_LENGTH} tokens"
    with _one_thread():
        dense = LoadedModel.of(checkpoint.load(dtype=dtype))
        input_ids_BT = torch.from_numpy(tokens.input_ids)
        sequence_nll(dense.model, input_ids_BT)  # the first forward of a process is slower
        yield (
            dense,
            input_ids_BT,
            {
                "model": workload.MODEL,
                "dtype, threads": f"{dtype}, 1",
                "batch": f"{size} ({text}, fingerprint {tokens.fingerprint})",
            },
        )


def measure(
    dense: LoadedModel, candidates: Sequence[ModelShape], input_ids_BT: torch.Tensor
) -> tuple[float, float]:
    """Seconds of one round for all candidates, from the embedding up and with the prefix reused, in
    turns candidate by candidate, so that background load affects both equally.
    """
    prefix, reused_s = timed(partial(run_prefix, dense, dense.geometry.dense, input_ids_BT))
    whole_s = 0.0
    for candidate in candidates:
        reused, seconds = timed(partial(score_candidates, dense, prefix, [candidate]))
        reused_s += seconds
        whole, seconds = timed(partial(_score_whole, dense, candidate, input_ids_BT))
        whole_s += seconds
        assert torch.equal(whole, reused[0]), (
            f"{candidate.text}: {whole.tolist()} from the embedding up, {reused[0].tolist()} "
            "with the prefix reused"
        )
    return whole_s, reused_s


def allowed_speedup(
    accounting: Accounting, candidates: Sequence[ModelShape], context_length: int
) -> float:
    """What FLOPs allow: all layers and the head for each candidate, over those of `suffix_flops`.

    A removed block saves its own FLOPs both ways.
    """
    return sum(_flops(accounting, each, context_length) for each in candidates) / suffix_flops(
        accounting, candidates, context_length
    )


def suffix_flops(
    accounting: Accounting, candidates: Sequence[ModelShape], context_length: int
) -> int:
    """Per token: the layers once, and the changed layers upwards and the head for each."""
    dense, gone = accounting.dense, LayerShape(0, 0)

    def suffix(candidate: ModelShape) -> ModelShape:
        start = dense.first_difference(candidate)
        return ModelShape((gone,) * start + candidate.layers[start:])

    flops = partial(_flops, accounting, context_length=context_length)
    head = flops(ModelShape((gone,) * len(dense.layers)))
    return flops(dense) - head + sum(flops(suffix(candidate)) for candidate in candidates)


def _flops(accounting: Accounting, shape: ModelShape, context_length: int) -> int:
    """Per token."""
    counted = accounting.flops_per_token(shape, context_length=context_length)
    assert counted is not None
    return counted


def block_candidates(accounting: Accounting) -> list[ModelShape]:
    """The dense model without one block, for each block."""
    dense = accounting.dense
    return [dense.without(removal) for removal in candidates_of(Stage("block", 0.5), dense)]


def llama_2_7b() -> PretrainedConfig:
    """The configuration of Llama-2-7B."""
    sizes = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
    }
    return AutoConfig.for_model(
        "llama", **sizes, num_attention_heads=32, num_key_value_heads=32, tie_word_embeddings=False
    )


def _report(
    settings: dict[str, str], rounds: Sequence[tuple[float, float]], allowed: float
) -> Report:
    measured = median_speedup(rounds)
    llama = Accounting(llama_2_7b())
    llama_candidates = block_candidates(llama)
    llama_allowed = allowed_speedup(llama, llama_candidates, 2048)
    return Report(
        "prefix_reuse",
        "Prefix reuse: one block step",
        settings,
        ("round", "from the embedding up", "prefix reused", "speed-up"),
        (
            *rounds_table(rounds),
            ("FLOPs allow", "", "", f"{allowed:.3f}"),
            ("share of it", "", "", f"{measured / allowed:.3f}"),
        ),
        (
            "Both ways gave bit-identical NLL for every candidate in every round.",
            (
                f"For the {len(llama_candidates)} candidates of Llama-2-7B's first block step at "
                f"2,048 tokens, FLOPs allow {llama_allowed:.3f}."
            ),
        ),
        ()
        if measured >= BOUND * allowed
        else (f"measured / allowed is {measured / allowed:.3f}, below {BOUND}",),
    )


def _score_whole(
    dense: LoadedModel, candidate: ModelShape, input_ids_BT: torch.Tensor
) -> torch.Tensor:
    with masked(dense, candidate):
        return sequence_nll(dense.model, input_ids_BT)


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and the seconds that it took, on a GPU with all that it started there."""
    _synchronize()
    started = time.perf_counter()
    result = call()
    _synchronize()
    return result, time.perf_counter() - started


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
