"""Whether the layers of a model have the same sizes, which a shape is measured in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pruning.errors import InputError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "n_inner",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
_INSTEAD = "which this method cannot measure shapes in; use a model whose layers are alike"


def refuse_varying(config: PretrainedConfig) -> None:
    """Refuses a configuration with settings for single layers (`per_layer_config`, as of Gemma 4),
    or with a list for a size.

    Raises:
        InputError: it names the settings, and the values that they have.
    """
    if config.is_heterogeneous:
        names = sorted({"skip", *(config.per_layer_attributes or ())})
        layers = config.per_layer_config
        varying = {name: [getattr(layer, name, None) for layer in layers] for name in names}
        varying = {name: values for name, values in varying.items() if values[1:] != values[:-1]}
    else:
        sizes: dict[str, Any] = {name: getattr(config, name, None) for name in _SIZES}
        varying = {name: size for name, size in sizes.items() if isinstance(size, list)}
    if varying:
        said = ", ".join(f"{name} ({_distinct(values)})" for name, values in varying.items())
        raise InputError(
            f"model.path: architecture {config.model_type!r} has layers that differ in {said}, "
            f"{_INSTEAD}"
        )


def refuse_unlike(layers: nn.ModuleList, model_type: str) -> None:
    """Refuses layers in which tensors of one name have different sizes. A name that not all layers
    have is fine: that of an expert, where other layers have an ordinary MLP.

    Raises:
        InputError: it names the first such tensor.
    """
    first: dict[str, tuple[int, list[int]]] = {}
    for index, layer in enumerate(layers):
        for name, parameter in layer.named_parameters():
            size = list(parameter.shape)
            other, known = first.setdefault(name, (index, size))
            if known != size:
                raise InputError(
                    f"model.path: architecture {model_type!r} has layers that differ in size "
                    f"({name} is {known} in layer {other} and {size} in layer {index}), {_INSTEAD}"
                )


def _distinct(values: list[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))
