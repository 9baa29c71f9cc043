"""Configuration of a DeciLM model (`model_type: nemotron-nas`): Llama's, and what each layer has.

    "block_configs": [{"attention": {"no_op": false, "replace_with_linear": false,
    "n_heads_in_group": ..},
                       "ffn": {"no_op": false, "replace_with_linear": false, "ffn_mult": ..,
                       "intermediate_size": ..}}, ..]

It needs transformers, nothing else. Programs that serve DeciLM models read the blocks as objects
with attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from transformers import LlamaConfig


class DeciLMConfig(LlamaConfig):
    """Llama's configuration, `block_configs`, and `qkv_bias`: whether q, k and v have biases, of
    which o has one with `attention_bias` only.
    """

    model_type = "nemotron-nas"

    def __init__(
        self,
        block_configs: Sequence[dict[str, dict[str, Any]]] = (),
        qkv_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.qkv_bias = qkv_bias
        self.block_configs = [
            SimpleNamespace(**{name: SimpleNamespace(**values) for name, values in block.items()})
            for block in block_configs
        ]

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = super().to_dict()
        values["block_configs"] = [
            {name: dict(vars(part)) for name, part in vars(block).items()}
            for block in self.block_configs
        ]
        return values
