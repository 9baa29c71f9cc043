"""What switching shapes costs: a step in the middle of a search, where every layer of the current
shape is narrowed and a candidate differs from it in one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from experiments.benchmarks.prefix_reuse import one_batch, timed
from experiments.benchmarks.report import Report, median_speedup
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.scoring.nll import Prefix, replayed, run_prefix, score_candidates, sequence_nll
from pruning.shape import LayerShape, ModelShape, Removal

CHANNELS = 256


def run(*, dtype: str = "auto", num_rounds: int = 3) -> Report:
    """Scores every candidate of such a step of SmolLM2 both ways, on one thread."""
    with one_batch(dtype) as (dense, input_ids_BT, settings):
        base = narrowed(dense.geometry.dense)
        candidates = candidates_of(base)
        prefix = run_prefix(dense, base, input_ids_BT)
        rounds = [measure(dense, prefix, candidates) for _ in range(num_rounds)]
    per_candidate = [
        [1e3 * seconds / len(candidates) for seconds in each] for each in zip(*rounds, strict=True)
    ]
    return Report(
        "masks",
        "Masks: a candidate switches its own block",
        settings | {"candidates": f"{len(candidates)}, of a shape whose layers are all narrowed"},
        ("round", "each from the dense model", "each from the one before", "times faster"),
        (
            *(
                (str(number), f"{first:.1f} ms", f"{second:.1f} ms", f"{first / second:.3f}")
                for number, (first, second) in enumerate(zip(*per_candidate, strict=True), start=1)
            ),
            ("median", "", "", f"{median_speedup(rounds):.3f}"),
        ),
        (
            "Per candidate, with its score. Both ways gave bit-identical NLL for every candidate "
            "in every round.",
        ),
    )


def narrowed(dense: ModelShape) -> ModelShape:
    """Every MLP has fewer channels, and every attention a KV head less."""
    return ModelShape(
        tuple(
            LayerShape(max(1, layer.kv_heads - 1), layer.mlp_channels - CHANNELS)
            for layer in dense.layers
        )
    )


def candidates_of(base: ModelShape) -> list[ModelShape]:
    """An MLP narrower still, or an attention gone, for each layer."""
    return [
        base.without(removal)
        for layer in range(len(base.layers))
        for removal in (
            Removal("mlp_channels", layer, base.layers[layer].mlp_channels - CHANNELS),
            Removal("attention", layer, 0),
        )
    ]


def measure(
    dense: LoadedModel, prefix: Prefix, candidates: Sequence[ModelShape]
) -> tuple[float, float]:
    """Seconds of one round both ways."""
    alone, alone_s = timed(partial(_one_by_one, dense, prefix, candidates))
    switched, switched_s = timed(partial(score_candidates, dense, prefix, candidates))
    assert torch.equal(alone, switched), "the two ways differ"
    return alone_s, switched_s


@torch.inference_mode()
def _one_by_one(
    dense: LoadedModel, prefix: Prefix, candidates: Sequence[ModelShape]
) -> torch.Tensor:
    rows = []
    for candidate in candidates:
        unchanged = prefix.layer_outputs[: prefix.base.first_difference(candidate)]
        with masked(dense, candidate), replayed(dense.layers, unchanged):
            rows.append(sequence_nll(dense.model, prefix.input_ids_BT))
    return torch.stack(rows)
