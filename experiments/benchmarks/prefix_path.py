"""How much time the kept layers save along a path: shapes that differ in one layer from the one
before, scored whole, as the solutions of an allocation are and the bases of a greedy search run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from experiments.benchmarks.prefix_reuse import one_batch, timed
from experiments.benchmarks.report import Report, rounds_table
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.nll import Prefix, run_prefix, score_candidates
from pruning.shape import LayerShape, ModelShape

NUM_SHAPES, CHANNELS, SEED = 30, 256, 42


def run(*, dtype: str = "auto", num_rounds: int = 3) -> Report:
    """Scores every shape of a random path of SmolLM2 both ways, on one thread."""
    with one_batch(dtype) as (dense, input_ids_BT, settings):
        shapes = path(dense.geometry.dense)
        rounds = [measure(dense, shapes, input_ids_BT) for _ in range(num_rounds)]
    num_layers = len(shapes[0].layers)
    kept = sum(before.first_difference(shape) for before, shape in pairwise(shapes))
    return Report(
        "prefix_path",
        "Kept layers: a path of shapes",
        settings
        | {
            "path": f"{len(shapes)} shapes; each has {CHANNELS} channels less in one layer, drawn "
            f"with seed {SEED}",
        },
        ("round", "all layers", "those above the change", "times faster"),
        rounds_table(rounds),
        (
            f"Layers run: {len(shapes) * num_layers} against {len(shapes) * num_layers - kept}; "
            "the head runs for each shape both ways.",
            "Both ways gave bit-identical NLL for every shape in every round.",
        ),
        (),
    )


def path(dense: ModelShape) -> list[ModelShape]:
    """The dense shape, then one MLP narrower at each step."""
    draw, shapes = random.Random(SEED), [dense]
    while len(shapes) < NUM_SHAPES:
        layers = list(shapes[-1].layers)
        number = draw.randrange(len(layers))
        kept = layers[number]
        if kept.mlp_channels > CHANNELS:
            layers[number] = LayerShape(kept.kv_heads, kept.mlp_channels - CHANNELS)
            shapes.append(ModelShape(tuple(layers)))
    return shapes


def measure(
    dense: LoadedModel, shapes: Sequence[ModelShape], input_ids_BT: torch.Tensor
) -> tuple[float, float]:
    """Seconds of one round both ways, in turns shape by shape."""
    whole_s = above_s = 0.0
    held: Prefix | None = None
    for shape in shapes:
        whole, seconds = timed(partial(_scored, dense, shape, input_ids_BT, ()))
        whole_s += seconds
        known = held.layer_outputs[: held.base.first_difference(shape)] if held else ()
        above, seconds = timed(partial(_scored, dense, shape, input_ids_BT, known))
        above_s += seconds
        assert torch.equal(whole[1], above[1]), f"{shape.text}: the two ways differ"
        held = above[0]
    return whole_s, above_s


def _scored(
    dense: LoadedModel, shape: ModelShape, input_ids_BT: torch.Tensor, known: Sequence[Any]
) -> tuple[Prefix, torch.Tensor]:
    prefix = run_prefix(dense, shape, input_ids_BT, known)
    return prefix, score_candidates(dense, prefix, [shape])
