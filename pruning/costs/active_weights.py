"""The matrices that one token is multiplied with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "moe_k")


def has_experts(config: PretrainedConfig) -> bool:
    """Whether a model is a mixture of experts."""
    return any(getattr(config.get_text_config(), name, None) for name in _NUM_EXPERTS)


def active_weights(block: nn.Module, config: PretrainedConfig) -> int | None:
    """Weights of a block that each token meets: all of a dense one; of a mixture of experts, the
    router, the shared experts, and of the others as many as a token is sent to.

    Returns:
        None where the block holds a matrix whose use is not known.
    """
    config = config.get_text_config()
    experts = {getattr(config, name, None) for name in _NUM_EXPERTS} - {None}
    per_token = {getattr(config, name, None) for name in _PER_TOKEN} - {None}
    total = 0
    for path, module in block.named_modules():
        routed = "experts" in path.split(".")
        for parameter in module.parameters(recurse=False):
            if parameter.dim() < 2:
                continue
            if isinstance(module, nn.Linear | Conv1D) and not routed:
                total += parameter.numel()
            elif len(experts) != 1 or len(per_token) != 1 or parameter.shape[0] not in experts:
                return None
            elif parameter.dim() == 3 and routed:
                total += parameter.numel() // parameter.shape[0] * per_token.copy().pop()
            elif parameter.dim() == 2 and not routed:
                total += parameter.numel()
            else:
                return None
    return total
