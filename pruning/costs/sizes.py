"""What is known of the sizes of a dense model, block by block."""

from __future__ import annotations

from dataclasses import dataclass

from pruning.models.families import Family
from pruning.models.geometry import Geometry


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """Parameters of one block.

    Args:
        total: of all its tensors.
        weights: of the matrices that each token is multiplied with; None: not known.
        per_unit: what one KV head or MLP channel takes with it.
        weights_per_unit: of that, what is in matrices.
        bias_per_unit: of that, what is in biases.
        norms: of the norms before and behind it.
    """

    total: int
    weights: int | None
    per_unit: int
    weights_per_unit: int
    bias_per_unit: int
    norms: int


@dataclass(frozen=True, slots=True)
class AttentionReads:
    """What the attention of one layer does besides its weights: products with the keys and values
    of earlier tokens, and what it keeps of each token for later ones.

    Args:
        products: multiplications for each position that a token attends to: query times key, and
            weight times value. None: not known.
        cached: values that are kept of each token: keys and values, or the latents that they are
            made of. None: not known.
        window: tokens that one attends to at most, itself included; None: all before it.
    """

    products: int | None
    cached: int | None
    window: int | None


@dataclass(frozen=True, slots=True)
class DenseSizes:
    """Parameters of a dense model: all, those of the head's matrix, and those of the attention and
    the MLP block of every layer.

    Args:
        hidden_size: channels of the residual stream.
        head_weights: None where matrices outside of the blocks and the head are multiplied with,
            so that the FLOPs are not known.
        reads: of the attention of every layer.
    """

    family: Family
    geometry: Geometry
    hidden_size: int
    num_parameters: int
    head_weights: int | None
    attention: tuple[BlockSizes, ...]
    mlp: tuple[BlockSizes, ...]
    reads: tuple[AttentionReads, ...]
