"""A pruned model in transformers: layers of different widths, of which some have no attention or no
MLP.

The last lines of this file in a checkpoint's folder name the family: its own classes do all the
computing, and only the blocks that `config.json` says are narrower or gone are exchanged when the
model is made.

    "pruned": {"layers": "layers", "attention": "self_attn", "mlp": "mlp", "attention_norms": [..],
    "mlp_norms": [..],
               "blocks": [{"num_attention_heads": .., "num_key_value_heads": ..,
               "intermediate_size": ..}, ..]}

has one entry in `blocks` for each layer, in which 0 means that the block is gone. It needs torch
and transformers, nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache


class LayerConfig:
    """The model's configuration as one layer sees it: the widths are its own, everything else is
    read from the model's when it is asked for.
    """

    def __init__(self, shared: Any, **own: int) -> None:
        self.__dict__.update(own, _shared=shared)

    def __getattr__(self, name: str) -> Any:
        if (
            name.startswith("__") or "_shared" not in self.__dict__
        ):  # copying asks before there is anything to give
            raise AttributeError(name)
        return getattr(self._shared, name)


class NoMixing(nn.Module):
    """Stands where an attention block was and adds nothing to the residual stream.

    It writes one zero per token into the cache: a cache tells how many tokens it holds by looking
    at some layer, and any may be asked.
    """

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        for cache in (*args, *kwargs.values()):
            if isinstance(cache, Cache):
                zero = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
                cache.update(zero, zero, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class NoMLP(nn.Module):
    """Stands where an MLP block was and adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


class PrunedLayers:
    """Mixed into a family's model classes: makes the dense layers, then exchanges the blocks that
    are narrower or gone.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        pruned = config.pruned
        layers = self.base_model.get_submodule(pruned["layers"])  # type: ignore[attr-defined]
        for index, (layer, block) in enumerate(zip(layers, pruned["blocks"], strict=True)):
            _exchange(layer, index, block, config, pruned)


def _exchange(
    layer: nn.Module, index: int, block: dict[str, int], config: Any, pruned: dict[str, Any]
) -> None:
    attention, mlp = pruned["attention"], pruned["mlp"]
    heads, kv_heads, channels = (
        block["num_attention_heads"],
        block["num_key_value_heads"],
        block["intermediate_size"],
    )
    if heads == 0:
        _replace(layer, attention, NoMixing(index), pruned["attention_norms"])
    elif heads != config.num_attention_heads:
        own = LayerConfig(
            config,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=pruned["head_dim"],
        )
        layer.set_submodule(attention, type(layer.get_submodule(attention))(own, index))
    if channels == 0:
        _replace(layer, mlp, NoMLP(), pruned["mlp_norms"])
    elif channels != pruned["intermediate_size"]:
        layer.set_submodule(
            mlp, type(layer.get_submodule(mlp))(LayerConfig(config, intermediate_size=channels))
        )


def _replace(layer: nn.Module, path: str, module: nn.Module, norms: list[str]) -> None:
    layer.set_submodule(path, module)
    for norm in norms:
        layer.set_submodule(norm, nn.Identity())
