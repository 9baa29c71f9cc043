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
from pruning.scoring.masking import masked, masking
from pruning.scoring.nll import run_prefix, score_candidates
from pruning.shape import LayerShape, ModelShape, Removal

CHANNELS = 256


def run(*, dtype: str = "auto", num_rounds: int = 3) -> Report:
    """Masks of every candidate of such a step of SmolLM2 both ways, on one thread."""
    with one_batch(dtype) as (dense, input_ids_BT, settings):
        base = narrowed(dense.geometry.dense)
        candidates = candidates_of(base)
        score_s = scored(dense, base, candidates, input_ids_BT)
        rounds = [measure(dense, candidates) for _ in range(num_rounds)]
    each = [[f"{1e3 * s / len(candidates):.2f} ms" for s in one] for one in rounds]
    return Report(
        "masks",
        "Masks: a candidate switches its own block",
        settings | {"candidates": f"{len(candidates)}, of a shape whose layers are all narrowed"},
        ("round", "each from the dense model", "each from the one before", "times faster"),
        (
            *(
                (str(number), *words, f"{first / second:.1f}")
                for number, (words, (first, second)) in enumerate(
                    zip(each, rounds, strict=True), start=1
                )
            ),
            ("median", "", "", f"{median_speedup(rounds):.1f}"),
        ),
        (
            "Making and undoing the masks of one candidate. With its score, the second way takes "
            f"{1e3 * score_s / len(candidates):.0f} ms. Both ways gave bit-identical NLL for every "
            "candidate.",
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


def scored(
    dense: LoadedModel,
    base: ModelShape,
    candidates: Sequence[ModelShape],
    input_ids_BT: torch.Tensor,
) -> float:
    """Seconds of all scores from candidate to candidate, which are those of each alone."""
    prefix = run_prefix(dense, base, input_ids_BT)
    switched, seconds = timed(partial(score_candidates, dense, prefix, candidates))
    for candidate, row in zip(candidates, switched, strict=True):
        [alone] = score_candidates(dense, prefix, [candidate])
        assert torch.equal(alone, row), f"{candidate.text}: the two ways differ"
    return seconds


def measure(dense: LoadedModel, candidates: Sequence[ModelShape]) -> tuple[float, float]:
    """Seconds of one round of masks alone, both ways."""
    _, alone_s = timed(partial(_one_by_one, dense, candidates))
    _, switched_s = timed(partial(_switched, dense, candidates))
    return alone_s, switched_s


def _one_by_one(dense: LoadedModel, candidates: Sequence[ModelShape]) -> None:
    for candidate in candidates:
        with masked(dense, candidate):
            pass


def _switched(dense: LoadedModel, candidates: Sequence[ModelShape]) -> None:
    with masking(dense) as become:
        for candidate in candidates:
            become(candidate)
