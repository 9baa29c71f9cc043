"""A DeciLM model in transformers: Llama, whose layers have the blocks that `block_configs` says.

It needs torch, transformers, and the two files beside it.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import LlamaForCausalLM, LlamaModel

from pruning.export.configuration_decilm import DeciLMConfig
from pruning.export.modeling_pruned import LayerConfig, NoMixing, NoMLP


class DeciLMLayers:
    """Mixed into Llama's classes: makes the dense layers, then exchanges the blocks that differ."""

    def __init__(self, config: DeciLMConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        layers = self.base_model.layers  # type: ignore[attr-defined]
        for index, (layer, block) in enumerate(zip(layers, config.block_configs, strict=True)):
            _exchange(layer, index, block, config)


class DeciLMModel(DeciLMLayers, LlamaModel):
    """Without a head."""

    config_class = DeciLMConfig


class DeciLMForCausalLM(DeciLMLayers, LlamaForCausalLM):
    """With a language-modeling head."""

    config_class = DeciLMConfig


def _exchange(layer: Any, index: int, block: Any, config: DeciLMConfig) -> None:
    if block.attention.no_op:
        layer.self_attn, layer.input_layernorm = NoMixing(index), nn.Identity()
    else:
        kv_heads = config.num_attention_heads // block.attention.n_heads_in_group
        own = LayerConfig(config, num_key_value_heads=kv_heads, attention_bias=config.qkv_bias)
        layer.self_attn = type(layer.self_attn)(own, index)
        if not config.attention_bias:
            layer.self_attn.o_proj.register_parameter("bias", None)
    if block.ffn.no_op:
        layer.mlp, layer.post_attention_layernorm = NoMLP(), nn.Identity()
    elif block.ffn.intermediate_size != config.intermediate_size:
        layer.mlp = type(layer.mlp)(
            LayerConfig(config, intermediate_size=block.ffn.intermediate_size)
        )
