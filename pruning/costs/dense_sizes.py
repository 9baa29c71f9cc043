"""The parameters of a dense model, block by block, from its configuration alone: the model is built
on the meta device and never allocated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from pruning.models.families import Cut, Family, blocks, family_of
from pruning.models.geometry import Geometry
from pruning.shape import LayerShape

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """Parameters of one block.

    Args:
        total: of all its tensors.
        weights: of its matrices.
        per_unit: what one KV head or MLP channel takes with it.
        weights_per_unit: of that, what is in matrices.
        bias_per_unit: of that, what is in biases.
        norms: of the norms before and behind it.
    """

    total: int
    weights: int
    per_unit: int
    weights_per_unit: int
    bias_per_unit: int
    norms: int


@dataclass(frozen=True, slots=True)
class DenseSizes:
    """Parameters of a dense model: all, those of the head's matrix, and those of the attention and
    the MLP block of every layer.

    Args:
        hidden_size: channels of the residual stream.
    """

    family: Family
    geometry: Geometry
    hidden_size: int
    num_parameters: int
    head_weights: int
    attention: tuple[BlockSizes, ...]
    mlp: tuple[BlockSizes, ...]


def dense_sizes(config: PretrainedConfig, *, trust_remote_code: bool = False) -> DenseSizes:
    """Counted in the modules that transformers builds for `config`.

    Raises:
        InputError: it is not a language model, or one whose blocks cannot be told apart.
    """
    from pruning.models.meta_model import meta_model  # torch and transformers: seconds to import

    model = meta_model(config, trust_remote_code=trust_remote_code)
    family, geometry = family_of(config, model), Geometry.of(config)
    head = model.get_output_embeddings()  # type: ignore[operator]
    pairs = list(zip(family.decoder_layers(model), blocks(model, family), strict=True))
    return DenseSizes(
        family,
        geometry,
        hidden_size=config.get_text_config().hidden_size,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        head_weights=head.weight.numel() if head is not None else 0,
        attention=tuple(
            _block_sizes(layer, block, family.attention_cuts, family.attention_norms, geometry)
            for layer, (block, _) in pairs
        ),
        mlp=tuple(
            _block_sizes(layer, block, family.mlp_cuts, family.mlp_norms, geometry)
            for layer, (_, block) in pairs
        ),
    )


def _block_sizes(
    layer: nn.Module,
    block: nn.Module,
    cuts: tuple[Cut, ...],
    norms: tuple[str, ...],
    geometry: Geometry,
) -> BlockSizes:
    one = LayerShape(1, 1)
    per_unit = weights_per_unit = bias_per_unit = 0
    for cut in cuts:
        target = block.get_submodule(cut.module)
        weight, bias = cast("torch.Tensor", target.weight), getattr(target, "bias", None)
        rows = sum(geometry.size(part, one) for part in cut.parts)
        share = rows * (weight.numel() // weight.shape[cut.dim])
        share_of_bias = rows if cut.dim == 0 and bias is not None else 0
        per_unit += share + share_of_bias
        bias_per_unit += share_of_bias
        weights_per_unit += share if weight.dim() > 1 else 0
    parameters = list(block.parameters())
    return BlockSizes(
        total=sum(parameter.numel() for parameter in parameters),
        weights=sum(parameter.numel() for parameter in parameters if parameter.dim() > 1),
        per_unit=per_unit,
        weights_per_unit=weights_per_unit,
        bias_per_unit=bias_per_unit,
        norms=sum(
            parameter.numel()
            for name in norms
            for parameter in layer.get_submodule(name).parameters()
        ),
    )
