"""The parameters of a dense model, block by block, from its configuration alone: the model is built
on the meta device and never allocated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pruning.costs.sizes import BlockSizes, DenseSizes
from pruning.models.families import Cut, Family, blocks, family_of
from pruning.models.geometry import Geometry
from pruning.models.layers_alike import refuse_unlike, refuse_varying
from pruning.shape import LayerShape

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig


def dense_sizes(config: PretrainedConfig, *, trust_remote_code: bool = False) -> DenseSizes:
    """Counted in the modules that transformers builds for `config`.

    Raises:
        InputError: it is not a language model, or one whose blocks cannot be told apart or differ
            in size between layers.
    """
    from pruning.costs.attention_reads import attention_reads
    from pruning.models.meta_model import meta_model  # torch and transformers: seconds to import

    refuse_varying(config)
    model = meta_model(config, trust_remote_code=trust_remote_code)
    family = family_of(config, model)
    refuse_unlike(family.decoder_layers(model), config.model_type)
    geometry = Geometry.of(config)
    pairs = list(zip(family.decoder_layers(model), blocks(model, family), strict=True))
    return DenseSizes(
        family,
        geometry,
        hidden_size=config.get_text_config().hidden_size,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        head_weights=_head_weights(model, family),
        attention=tuple(
            _block_sizes(
                layer, block, family.attention_cuts, family.attention_norms, geometry, config
            )
            for layer, (block, _) in pairs
        ),
        mlp=tuple(
            _block_sizes(layer, block, family.mlp_cuts, family.mlp_norms, geometry, config)
            for layer, (_, block) in pairs
        ),
        reads=tuple(
            attention_reads(block, config, index) for index, (_, (block, _)) in enumerate(pairs)
        ),
    )


def _head_weights(model: nn.Module, family: Family) -> int | None:
    """Weights of the head, if all other matrices are in the blocks or looked up (embeddings), and
    the forward is that of transformers.
    """
    from torch import nn

    head = model.get_output_embeddings()  # type: ignore[operator]
    known = {
        id(parameter)
        for pair in blocks(model, family)
        for block in pair
        for parameter in block.parameters()
    }
    known |= {
        id(parameter)
        for module in (head, *model.modules())
        if module is head or isinstance(module, nn.Embedding)
        for parameter in (module.parameters() if module is not None else ())
    }
    others = (
        parameter
        for parameter in model.parameters()
        if parameter.dim() > 1 and id(parameter) not in known
    )
    if next(others, None) is not None or not type(model).__module__.startswith("transformers."):
        return None
    return head.weight.numel() if head is not None else 0


def _block_sizes(
    layer: nn.Module,
    block: nn.Module,
    cuts: tuple[Cut, ...],
    norms: tuple[str, ...],
    geometry: Geometry,
    config: PretrainedConfig,
) -> BlockSizes:
    from pruning.costs.active_weights import active_weights

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
        weights=active_weights(block, config),
        per_unit=per_unit,
        weights_per_unit=weights_per_unit,
        bias_per_unit=bias_per_unit,
        norms=sum(
            parameter.numel()
            for name in norms
            for parameter in layer.get_submodule(name).parameters()
        ),
    )
