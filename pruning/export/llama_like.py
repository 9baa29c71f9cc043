"""What the formats of other programs ask of a model: that it computes as Llama does."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from pruning.models.families import FAMILIES, Family

ROPE_TYPES = ("default", "linear", "llama3")


def llama_problems(config: PretrainedConfig, family: Family, format_name: str) -> list[str]:
    """What of a dense model cannot be told in a format made for Llama; one message each, empty if
    nothing.

    Norms, activation, rotary embedding and the reach of attention are the model's, so no shape
    makes a difference to them.
    """
    if not family.computes_as_llama:
        known = ", ".join(name for name, other in FAMILIES.items() if other.computes_as_llama)
        return [
            f"format: {format_name} holds models of {known}, not of {family.model_type!r}, which "
            "computes otherwise. Use format=transformers"
        ]
    found: list[str] = []
    if config.hidden_act != "silu":
        found.append(f"the activation {config.hidden_act!r} (only silu)")
    window = _window(config)
    if window is not None:
        found.append(
            f"attention that reaches back {window} of {config.max_position_embeddings} tokens "
            "(sliding_window); only all of them"
        )
    rope = rope_parameters(config)
    if rope["rope_type"] not in ROPE_TYPES:
        found.append(f"the rotary scaling {rope['rope_type']!r} (only {', '.join(ROPE_TYPES)})")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        found.append(
            "rotary embedding of a part of each head (partial_rotary_factor "
            f"{rope['partial_rotary_factor']})"
        )
    return [
        f"format: {format_name} cannot express {what} of this {family.model_type}. Use "
        "format=transformers"
        for what in found
    ]


def rope_parameters(config: PretrainedConfig) -> dict[str, Any]:
    """`rope_type`, `rope_theta` and what belongs to the type."""
    return {"rope_type": "default"} | dict(config.rope_parameters)


def _window(config: PretrainedConfig) -> int | None:
    """The sliding window, if it is used and shorter than the context."""
    window: int | None = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    slides = (
        "sliding_attention" in layer_types
        if layer_types
        else getattr(config, "use_sliding_window", True)
    )
    return (
        window
        if window is not None and slides and window < config.max_position_embeddings
        else None
    )
