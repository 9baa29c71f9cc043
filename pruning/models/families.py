"""What is special about each family of models, per `config.model_type`.

All knowledge of model families is in this file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from pruning.errors import InputError
from pruning.models.geometry import Geometry, Part
from pruning.shape import LayerShape

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Cut:
    """One parameter that gets smaller with its block.

    `dim` 0 cuts rows (and the bias), 1 cuts columns. `parts` are what lies behind one another along
    that dimension: one for an ordinary projection, several for a fused one.
    """

    module: str
    dim: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class GGUFGaps:
    """What transformers does not read from the GGUFs of a family.

    Args:
        architecture: the file's `general.architecture`.
        fill: adds it to the configuration that transformers made, given the factor by which the
            file stretches positions linearly (None: it does not).
    """

    architecture: str
    fill: Callable[[PretrainedConfig, float | None], None]


@dataclass(frozen=True, slots=True)
class Family:
    """One family of decoder-only models: how it is laid out, and what else is special about it.

    Paths are relative to the model, the layer, or the block.

    Args:
        head_counts: attributes of the attention module that hold head counts which its forward
            reads; most families infer them from the tensors.
        attention_norms: those of the layer that serve the attention block only; `mlp_norms` alike.
        sequential: the MLP reads the residual stream after the attention has added to it; None is
            known of a family outside the registry.
        computes_as_llama: norms, projections and rotary embedding are Llama's, so that formats of
            other programs that are made for Llama (`decilm`, `gguf`) hold it.
        always_qkv_bias: q, k and v have biases whatever the configuration says.
        bos_tokenizer: class of the family's tokenizers, where its models have never seen a text
            without BOS, so that each window of text begins with it.
        gguf_gaps: None where transformers reads all but scaled rotary embeddings.
    """

    model_type: str
    layers: str = "model.layers"
    attention: str = "self_attn"
    mlp: str = "mlp"
    attention_cuts: tuple[Cut, ...] = (
        Cut("q_proj", 0, ("q",)),
        Cut("k_proj", 0, ("k",)),
        Cut("v_proj", 0, ("v",)),
        Cut("o_proj", 1, ("q",)),
    )
    mlp_cuts: tuple[Cut, ...] = (
        Cut("gate_proj", 0, ("gate",)),
        Cut("up_proj", 0, ("up",)),
        Cut("down_proj", 1, ("down",)),
    )
    head_counts: tuple[Literal["num_attention_heads", "num_key_value_heads"], ...] = ()
    attention_norms: tuple[str, ...] = ("input_layernorm",)
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm",)
    sequential: bool = True
    computes_as_llama: bool = False
    always_qkv_bias: bool = False
    bos_tokenizer: str | None = None
    gguf_gaps: GGUFGaps | None = None

    @property
    def prunes_widths(self) -> bool:
        """False: only whole blocks of this family can be removed."""
        return bool(self.attention_cuts and self.mlp_cuts)

    def decoder_layers(self, model: nn.Module) -> nn.ModuleList:
        return cast("nn.ModuleList", model.get_submodule(self.layers))

    def has_qkv_bias(self, config: PretrainedConfig) -> bool:
        return self.always_qkv_bias or bool(getattr(config, "attention_bias", False))


def _fill_gemma3(config: PretrainedConfig, rotary_factor: float | None) -> None:
    """As llama.cpp has it: attention is scaled by the size of a head, but in the 27B, which has 62
    layers; positions are stretched in full attention only.
    """
    config.query_pre_attn_scalar = (
        config.hidden_size // config.num_attention_heads
        if config.num_hidden_layers == 62
        else config.head_dim
    )
    if rotary_factor is not None:
        config.rope_parameters["full_attention"] |= {"rope_type": "linear", "factor": rotary_factor}


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama", computes_as_llama=True),
        Family("mistral", computes_as_llama=True),
        Family("qwen2", computes_as_llama=True, always_qkv_bias=True),
        Family("qwen3"),
        Family(
            "gemma3_text",
            attention_norms=("input_layernorm", "post_attention_layernorm"),
            mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
            bos_tokenizer="GemmaTokenizer",
            gguf_gaps=GGUFGaps("gemma3", _fill_gemma3),
        ),
        Family(
            "olmo2",
            # Its q and k norms run over all heads together, so they are cut like the rows that they
            # follow.
            attention_cuts=(
                *Family("").attention_cuts,
                Cut("q_norm", 0, ("q",)),
                Cut("k_norm", 0, ("k",)),
            ),
            attention_norms=("post_attention_layernorm",),
            mlp_norms=("post_feedforward_layernorm",),
        ),
        Family(
            "phi3",
            attention_cuts=(Cut("qkv_proj", 0, ("q", "k", "v")), Cut("o_proj", 1, ("q",))),
            mlp_cuts=(Cut("gate_up_proj", 0, ("gate", "up")), Cut("down_proj", 1, ("down",))),
            head_counts=("num_attention_heads", "num_key_value_heads"),
        ),
    )
}

_ATTENTION_NAMES = ("self_attn", "self_attention", "attention", "attn")
_MLP_NAMES = ("mlp", "feed_forward", "ffn")
_DECODERS_CALLED_ENCODERS = (
    "gpt_neox",
    "gpt_neox_japanese",
)  # their configuration says is_decoder: false, and nothing reads it


def family_of(config: PretrainedConfig, model: nn.Module) -> Family:
    """The family of a model, which may be on the meta device.

    A causal language model outside the registry is pruned by whole blocks, if each of its layers
    has one attention and one MLP.

    Raises:
        InputError: not a decoder-only language model, or one whose blocks cannot be told apart.
    """
    known = FAMILIES.get(config.model_type)
    if known is not None:
        return known
    require_causal_lm(config)
    from torch import nn

    num_layers = getattr(config, "num_hidden_layers", 0)
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers > 0:
            names = [name for name, _ in module[0].named_children()]
            attention = [name for name in _ATTENTION_NAMES if name in names]
            mlp = [name for name in _MLP_NAMES if name in names]
            alike = all(
                {*attention, *mlp} <= {name for name, _ in layer.named_children()}
                for layer in module
            )
            if len(attention) == len(mlp) == 1 and alike:
                return Family(
                    config.model_type,
                    path,
                    attention[0],
                    mlp[0],
                    attention_cuts=(),
                    mlp_cuts=(),
                    attention_norms=(),
                    mlp_norms=(),
                    sequential=False,
                )
    raise InputError(
        "model: cannot find one attention and one MLP in each layer of architecture "
        f"{config.model_type!r}. "
        f"Pruned at all granularities: {', '.join(sorted(FAMILIES))}; by whole blocks: causal "
        "models whose layers hold both as submodules"
    )


def require_causal_lm(config: PretrainedConfig) -> None:
    """Refuses what is not a decoder-only language model, such as an encoder.

    Raises:
        InputError: see above.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    )
    encoder = (
        getattr(config, "is_decoder", True) is False
        and config.model_type not in _DECODERS_CALLED_ENCODERS
    )
    if not causal or encoder or getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"model: architecture {config.model_type!r} is not a decoder-only language model, "
            "which is what this method prunes. "
            f"Pruned at all granularities: {', '.join(sorted(FAMILIES))}; other causal language "
            "models by whole blocks"
        )


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether each window of text begins with BOS. The tokenizer tells, which a pruned model has
    from its dense one.
    """
    classes = {kind.__name__ for kind in type(tokenizer).__mro__}
    return any(family.bos_tokenizer in classes for family in FAMILIES.values())


def gguf_gaps(architecture: str) -> GGUFGaps | None:
    """Those of the family whose GGUFs say that `general.architecture`."""
    gaps = (family.gguf_gaps for family in FAMILIES.values() if family.gguf_gaps is not None)
    return next((gap for gap in gaps if gap.architecture == architecture), None)


def blocks(model: PreTrainedModel | nn.Module, family: Family) -> list[tuple[nn.Module, nn.Module]]:
    """The attention and the MLP module of every layer."""
    return [
        (layer.get_submodule(family.attention), layer.get_submodule(family.mlp))
        for layer in family.decoder_layers(model)
    ]


def cut_views(
    cut: Cut, module: nn.Module, geometry: Geometry, layer: LayerShape, dense: LayerShape
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Weight and bias of each part of `cut`, narrowed to what `layer` keeps.

    Views, never copies.
    """
    target = module.get_submodule(cut.module)
    weight = cast("torch.Tensor", target.weight)
    bias = cast("torch.Tensor | None", getattr(target, "bias", None))
    views, offset = [], 0
    for part in cut.parts:
        size = geometry.size(part, layer)
        narrowed = weight.narrow(cut.dim, offset, size)
        views.append(
            (narrowed, bias if bias is None or cut.dim == 1 else bias.narrow(0, offset, size))
        )
        offset += geometry.size(part, dense)
    return views
