"""What the order of channels decides: the same share of MLP channels removed from every layer,
without a search (docs/concepts/method.md, "The order of channels").
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from experiments.benchmarks import workload
from experiments.benchmarks.report import Report
from pruning.calibration.token_sets import TokenSet
from pruning.importance.channel_order import channel_order, reorder
from pruning.importance.criteria import Importance
from pruning.models.checkpoint import Checkpoint
from pruning.models.dtypes import resolve_dtype
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.scoring.nll import sequence_nll
from pruning.shape import ModelShape

NUM_SEQUENCES, SEQUENCE_LENGTH, BATCH_SIZE = 8, 512, 2
SHARES = (0.125, 0.25)
ORDERS: tuple[Importance, ...] = ("none", "l1", "activation")


def run(*, dtype: str = "auto", num_windows: int = 8) -> Report:
    """Perplexity of SmolLM2, dense and at two uniform widths in each order."""
    checkpoint = workload.checkpoint()
    dtype = resolve_dtype(dtype, on_gpu=False)
    text, calibration = workload.calibration(checkpoint, NUM_SEQUENCES, SEQUENCE_LENGTH)
    wikitext = workload.wikitext(checkpoint, num_windows, SEQUENCE_LENGTH)
    sets = {text: calibration} | ({} if wikitext is None else {"WikiText-2": wikitext})
    rows = [_row("dense", LoadedModel.of(checkpoint.load(dtype=dtype)), 0.0, sets)]
    for importance in ORDERS:
        dense = sorted_model(checkpoint, importance, calibration, dtype)
        rows += [_row(importance, dense, share, sets) for share in SHARES]
    settings = {
        "model": workload.MODEL,
        "dtype": dtype,
        "calibration": (
            f"{NUM_SEQUENCES} x {SEQUENCE_LENGTH} tokens ({text}, fingerprint "
            f"{calibration.fingerprint})"
        ),
        "WikiText-2": "not there: calibration text only"
        if wikitext is None
        else _describe(wikitext),
    }
    title = "Orders of channels: perplexity with a share of every layer's MLP channels removed"
    return Report("importance_orders", title, settings, ("order", "removed", *sets), tuple(rows))


def sorted_model(
    checkpoint: Checkpoint, importance: Importance, calibration: TokenSet, dtype: str
) -> LoadedModel:
    """A fresh copy of the model with its weights in that order."""
    dense = LoadedModel.of(checkpoint.load(dtype=dtype))
    batches = (torch.from_numpy(batch) for batch in calibration.batches(BATCH_SIZE))
    reorder(dense, channel_order(dense, importance, batches))
    return dense


def narrowed(dense: ModelShape, share: float) -> ModelShape:
    """Every MLP with that share of its channels gone."""
    return ModelShape(
        tuple(
            replace(layer, mlp_channels=round(layer.mlp_channels * (1 - share)))
            for layer in dense.layers
        )
    )


def perplexity(model: PreTrainedModel, tokens: TokenSet) -> float:
    """exp(total NLL / total predicted tokens) of the model as it stands."""
    total = sum(
        float(sequence_nll(model, torch.from_numpy(batch)).sum())
        for batch in tokens.batches(BATCH_SIZE)
    )
    return math.exp(total / (tokens.num_sequences * (tokens.sequence_length - 1)))


def _row(name: str, dense: LoadedModel, share: float, sets: dict[str, TokenSet]) -> tuple[str, ...]:
    with masked(dense, narrowed(dense.geometry.dense, share)):
        return (
            name,
            f"{share:.1%}",
            *(f"{perplexity(dense.model, tokens):,.1f}" for tokens in sets.values()),
        )


def _describe(wikitext: TokenSet) -> str:
    return (
        f"the first {wikitext.num_sequences} windows of {wikitext.sequence_length} tokens of "
        f"the raw test split (fingerprint {wikitext.fingerprint})"
    )
