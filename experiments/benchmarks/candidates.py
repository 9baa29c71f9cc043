"""Candidates that one device scores per second, and what share of its peak that is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from experiments.benchmarks import workload
from experiments.benchmarks.latency import random_model
from experiments.benchmarks.prefix_reuse import (
    allowed_speedup,
    block_candidates,
    llama_2_7b,
    measure,
    suffix_flops,
    timed,
)
from experiments.benchmarks.report import Report
from pruning.costs.accounting import Accounting
from pruning.models.dtypes import resolve_dtype
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.nll import sequence_nll

SEQUENCE_LENGTH = {"cpu": 128, "cuda": 2048}
_PEAK_SIZE = {"cpu": 2048, "cuda": 8192}

NOTES = (
    "A step: all candidates of the first block step, each without one block, on one batch of "
    "random tokens. Both ways gave bit-identical NLL for every candidate in every round.",
    "TFLOP/s: what the layers above the change, the head and the prefix take, over the seconds of "
    "the reused way, with prefix; peak: of one large product of matrices of this type, measured "
    "here.",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One model's first block step.

    Args:
        whole_s: of a round in which every candidate runs from the embedding up.
        reused_s: of one in which the prefix is reused.
        flops: that the second takes.
        allowed: how many times faster FLOPs allow the second to be.
    """

    num_candidates: int
    whole_s: float
    reused_s: float
    flops: int
    allowed: float


def run(*, dtype: str = "auto", num_rounds: int = 3) -> Report:
    """Models of SmolLM2's and, on a GPU, of Llama-2-7B's sizes, with weights drawn at random."""
    on_gpu = torch.cuda.is_available()
    dtype, device = resolve_dtype(dtype, on_gpu=on_gpu), "cuda" if on_gpu else "cpu"
    length = SEQUENCE_LENGTH[device]
    peak = peak_flops(device, dtype, _PEAK_SIZE[device])
    work = {"SmolLM2-135M's": (workload.checkpoint().config(), (1, 8) if on_gpu else (1,))}
    if on_gpu:
        work["Llama-2-7B's"] = (llama_2_7b(), (1, 4))
    rows = []
    for name, (config, batch_sizes) in work.items():
        for batch_size in batch_sizes:
            found = step_of(config, batch_size, length, num_rounds, dtype, device)
            rows.append(row(name, batch_size, found, peak))
    return Report(
        "candidates",
        "Candidates per second of one device",
        {
            "device": torch.cuda.get_device_name() if on_gpu else "CPU",
            "dtype": dtype,
            "peak": f"{peak / 1e12:.4g} TFLOP/s",
            "tokens of a sequence": f"{length:,}; {num_rounds} rounds",
        },
        (
            *("sizes", "sequences", "candidates/s, all layers", "prefix reused", "times faster"),
            *("FLOPs allow", "TFLOP/s", "of peak"),
        ),
        tuple(rows),
        NOTES,
    )


def row(name: str, batch_size: int, found: Measured, peak: float) -> tuple[str, ...]:
    """Of the table."""
    rate = found.flops / found.reused_s
    return (
        name,
        str(batch_size),
        f"{found.num_candidates / found.whole_s:.3g}",
        f"{found.num_candidates / found.reused_s:.3g}",
        f"{found.whole_s / found.reused_s:.2f}",
        f"{found.allowed:.2f}",
        f"{rate / 1e12:.3g}",
        f"{rate / peak:.1%}",
    )


def step_of(
    config: PretrainedConfig,
    batch_size: int,
    sequence_length: int,
    num_rounds: int,
    dtype: str,
    device: str,
) -> Measured:
    """Of one model, medians over rounds."""
    accounting = Accounting(config)
    candidates = block_candidates(accounting)
    with torch.device(device):
        dense = LoadedModel.of(random_model(config, dtype))
        ids_BT = torch.randint(int(config.vocab_size), (batch_size, sequence_length))
    sequence_nll(dense.model, ids_BT)  # the first forward of a process is slower
    rounds = [measure(dense, candidates, ids_BT) for _ in range(num_rounds)]
    whole_s, reused_s = (statistics.median(each) for each in zip(*rounds, strict=True))
    return Measured(
        len(candidates),
        whole_s,
        reused_s,
        batch_size * sequence_length * suffix_flops(accounting, candidates, sequence_length),
        allowed_speedup(accounting, candidates, sequence_length),
    )


def peak_flops(device: str, dtype: str, size: int) -> float:
    """FLOP/s of products of two square matrices of that many rows, the median of ten."""
    one, other = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in "ab")
    seconds: Sequence[float] = [timed(lambda: one @ other)[1] for _ in range(13)]
    return 2 * size**3 / statistics.median(seconds[3:])
