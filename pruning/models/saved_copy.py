"""A loaded model as a folder, which opens as the same model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import (  # type: ignore[attr-defined]
    CONFIG_MAPPING_NAMES,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pruning.errors import InputError, first_line
from pruning.models.meta_model import meta_model

_NUM_NAMED = 3
"""Tensors that a message names."""


def problem_of(model: object) -> str | None:
    """Why a folder would not open as this model, and what to do; None if it would."""
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        return (
            "has adapters of PEFT, which are no weights of its own; merge them first, with "
            "merge_and_unload of its PeftModel"
        )
    if not isinstance(model, PreTrainedModel):
        return (
            f"a value of type {type(model).__name__}; give a folder, a .gguf file, a hub id, or a "
            "loaded transformers.PreTrainedModel"
        )
    if getattr(model, "hf_quantizer", None) or getattr(model.config, "quantization_config", None):
        return "its weights are quantized, which cannot be cut; load the unquantized model"
    meta = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if meta:
        return (
            f"{_named(meta)} on the meta device, without values; load the whole model into memory"
        )
    return _problem_of_class(model)


def save_copy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path
) -> None:
    """Writes safetensors, in the types that the tensors have, and the tokenizer.

    Raises:
        InputError: transformers refuses to write it.
        OSError: the disk is full, or cannot be written.
    """
    try:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"model: cannot be saved: {first_line(error)}; give the folder of a checkpoint"
        ) from error


def _problem_of_class(model: PreTrainedModel) -> str | None:
    """Of what AutoModelForCausalLM makes of its configuration."""
    config, kind = model.config, type(model)
    opened: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if config.model_type not in CONFIG_MAPPING_NAMES or kind is not opened:
        instead = f"a {opened.__name__}" if opened else "no model"
        return (
            f"a {kind.__module__}.{kind.__name__}, and AutoModelForCausalLM makes {instead} of its "
            f"configuration ({config.model_type}); give a causal language model of transformers"
        )
    here = {name: tensor.shape for name, tensor in model.state_dict().items()}
    described = meta_model(copy.deepcopy(config)).state_dict()
    expected = {name: tensor.shape for name, tensor in described.items()}
    differing = [name for name in here | expected if here.get(name) != expected.get(name)]
    if differing:
        return (
            f"{_named(differing)} other than its configuration describes; give a model whose "
            "blocks were not exchanged, or the folder of a checkpoint"
        )
    return None


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _NUM_NAMED} more tensors" if len(names) > _NUM_NAMED else ""
    return f"{', '.join(names[:_NUM_NAMED])}{more} {'are' if len(names) > 1 else 'is'}"
