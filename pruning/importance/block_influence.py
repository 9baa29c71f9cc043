"""Block influence: how much each decoder layer changes what flows through it.

ShortGPT (Men et al. 2024, arXiv 2403.03853, eq. 1): BI_i = 1 - E[cos(X_i, X_i+1)], X_i being the
hidden state of a token that enters layer i and X_i+1 the one that leaves it, over all tokens of the
calibration set. Layers that change it least go first, whole.

Shape letters: B sequences of a batch, T tokens of a sequence, D hidden size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pruning.canonical_json import dump_json
from pruning.errors import ScoringError
from pruning.models.loaded_model import LoadedModel
from pruning.shape import Removal

SOURCE = (
    "ShortGPT, arXiv 2403.03853: 1 - mean over the tokens of the block calibration set of "
    "the cosine between what enters and what leaves a layer"
)


@dataclass(frozen=True, slots=True)
class LayerSimilarity:
    """What one batch adds: for each layer the sum over its tokens of the cosine between what enters
    and what leaves it.
    """

    cosine_sums: tuple[float, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class BlockInfluence:
    """BI of every decoder layer of the dense model, 0 (changes nothing) to 2.

    Raises:
        ScoringError: a value is not finite, so that layers cannot be ranked.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        bad = [index for index, value in enumerate(self.values) if not math.isfinite(value)]
        if bad:
            raise ScoringError(
                f"block influence: it is not finite in layer {bad[0]}, so layers cannot be "
                "ranked. Weights or dtype overflow: try model.dtype=float32"
            )

    @classmethod
    def of(cls, batches: Sequence[LayerSimilarity]) -> BlockInfluence:
        """Batches are added in the order given, so that the result has the same bits whoever
        measured them.
        """
        num_tokens = sum(batch.num_tokens for batch in batches)
        return cls(
            tuple(
                1 - math.fsum(sums) / num_tokens
                for sums in zip(*(batch.cosine_sums for batch in batches), strict=True)
            )
        )

    @property
    def path(self) -> tuple[tuple[Removal, ...], ...]:
        """Whole layers, attention then MLP, in ascending order of influence; equal values: the
        lower layer first.
        """
        layers = sorted(range(len(self.values)), key=lambda layer: self.values[layer])
        return tuple((Removal("attention", layer, 0), Removal("mlp", layer, 0)) for layer in layers)

    def save(self, path: Path) -> None:
        path.write_text(
            dump_json({"source": SOURCE, "block_influence": list(self.values)}), encoding="utf-8"
        )

    @classmethod
    def load(cls, path: Path) -> BlockInfluence:
        return cls(tuple(json.loads(path.read_text(encoding="utf-8"))["block_influence"]))


@torch.inference_mode()
def layer_similarity(loaded: LoadedModel, input_ids_BT: torch.Tensor) -> LayerSimilarity:
    """Runs a dense model on one batch without padding.

    Cosines are computed in float32 and added in float64.
    """
    sums: list[float] = []

    def add(
        _module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        leaving_BTD = output[0] if isinstance(output, tuple) else output
        entering_BTD = (inputs[0] if inputs else kwargs["hidden_states"]).to(leaving_BTD.device)
        cosine_BT = functional.cosine_similarity(entering_BTD.float(), leaving_BTD.float(), dim=-1)
        sums.append(float(cosine_BT.double().sum()))

    with ExitStack() as hooks:
        for layer in loaded.layers:
            hooks.callback(layer.register_forward_hook(add, with_kwargs=True).remove)
        loaded.model.base_model(input_ids=input_ids_BT, use_cache=False)
    return LayerSimilarity(tuple(sums), input_ids_BT.numel())
