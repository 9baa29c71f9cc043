"""A model without weights, from its configuration."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from pruning.models.families import require_causal_lm


def meta_model(config: PretrainedConfig, *, trust_remote_code: bool = False) -> nn.Module:
    """The model of `config` without storage.

    Raises:
        InputError: it is not a language model.
    """
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code
            )
    except ValueError:
        require_causal_lm(config)  # where that is the reason, it says so in one line
        raise
    return model
