"""A pruned model as a folder that stock transformers opens: the family's own classes, a small file
of code where layers differ, and fewer tensors.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from pruning.errors import InputError
from pruning.export import modeling_pruned
from pruning.export.layer_settings import layer_settings, shifted_settings
from pruning.export.layer_structure import first_difference
from pruning.export.modeling_pruned import PrunedLayers
from pruning.export.plain import plain_config
from pruning.export.source import ExportSource
from pruning.export.surgery import PrunedLayer, pruned_layers, pruned_tensors
from pruning.models.families import FAMILIES, Family
from pruning.models.geometry import Geometry
from pruning.models.loaded_model import LoadedModel
from pruning.models.meta_model import meta_model
from pruning.models.shards import MAX_SHARD_BYTES, write_shards
from pruning.shape import LayerShape, ModelShape

CODE = "modeling_pruned.py"
"""The file of code in the folder."""

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "spiece.model",
    "chat_template*",
)

_PREFIX = "pruned_"

_CLASSES = '''

class Pruned{config}({config}):
    """The family's configuration, and `pruned`."""

    model_type = "{model_type}"


class Pruned{model}(PrunedLayers, {model}):
    """{model} with pruned layers."""

    config_class = Pruned{config}


class Pruned{causal}(PrunedLayers, {causal}):
    """{causal} with pruned layers."""

    config_class = Pruned{config}
'''

_Classes = tuple[type[PretrainedConfig], type[PreTrainedModel], type[PreTrainedModel]]
_registered: dict[str, _Classes] = {}


def layers_of(shape: ModelShape, family: Family) -> tuple[PrunedLayer, ...]:
    """The layers that are written; half layers are paired where blocks follow one another."""
    return pruned_layers(shape, pair=family.sequential)


def pruned_config(
    config: PretrainedConfig, family: Family, geometry: Geometry, layers: tuple[PrunedLayer, ...]
) -> PretrainedConfig:
    """The configuration of the pruned model: the dense one with fewer layers, and under `pruned`
    what remains of each of them.

    What counts layers in it is changed; see `shifted_settings`.

    Raises:
        InputError: the architecture cannot be written, since its blocks depend on which layer they
            are in.
    """
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise InputError(
            f"model: attention of {config.model_type!r} with scale_attn_by_inverse_layer_idx "
            "depends on its layer number, which pruning changes"
        )
    config_class = _classes(config.model_type)[0]
    values = shifted_settings(config.to_dict(), layers, geometry.num_layers)
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(layers)
    for name in ("model_type", "architectures", "auto_map", "transformers_version"):
        values.pop(name, None)
    pruned: PretrainedConfig = config_class.from_dict(values)
    _, model, causal = (kind.__name__ for kind in _classes(config.model_type))
    pruned.architectures = [causal]
    pruned.auto_map = {
        "AutoConfig": f"{Path(CODE).stem}.{config_class.__name__}",
        "AutoModel": f"{Path(CODE).stem}.{model}",
        "AutoModelForCausalLM": f"{Path(CODE).stem}.{causal}",
    }
    pruned.pruned = {
        "layers": family.layers.partition(".")[2],
        "attention": family.attention,
        "mlp": family.mlp,
        "attention_norms": list(family.attention_norms),
        "mlp_norms": list(family.mlp_norms),
        "head_dim": geometry.head_dim,
        "intermediate_size": geometry.mlp_channels,
        "blocks": [
            {
                "num_attention_heads": layer.kv_heads * geometry.queries_per_kv_head,
                "num_key_value_heads": layer.kv_heads,
                "intermediate_size": layer.mlp_channels,
            }
            for layer in layers
        ],
    }
    return pruned


def problems(
    config: PretrainedConfig, family: Family, geometry: Geometry, shape: ModelShape
) -> list[str]:
    """What keeps a shape of this model from being written, found from the configuration alone.

    Of the families in the registry, any shape can be. Of others, what transformers makes of the
    new configuration is compared with the layers that are left.
    """
    layers = layers_of(shape, family)
    try:
        config_after = pruned_config(config, family, geometry, layers)
    except InputError as error:
        return [str(error)]
    if family.prunes_widths or geometry.narrowed(shape):  # the latter is refused by itself
        return []
    found = first_difference(meta_model(config), _without_weights(config_after), family, layers)
    if found is None:
        return []
    counting = ", ".join(layer_settings(config.to_dict())) or "none that is known"
    return [
        f"model: architecture {config.model_type!r} cannot be written or evaluated without some of "
        f"its layers: {found}. Settings that count layers: {counting}. Leave out evaluation and "
        "export, or prune another model"
    ]


def shapes_to_try(geometry: Geometry) -> list[ModelShape]:
    """Shapes in which every layer that is left gets another number, some an even one, some an odd
    one: what a configuration cannot say of a layer shows in one of them.
    """
    full, gone = geometry.dense.layers[0], LayerShape(0, 0)
    numbers = range(geometry.num_layers)
    kept = [
        set(numbers),
        set(numbers[1:]),
        set(numbers[::2]),
        set(numbers[1::2]),
        set(numbers[: len(numbers) // 2]),
        set(numbers[len(numbers) // 2 :]),
    ]
    return [
        ModelShape(tuple(full if index in layers else gone for index in numbers))
        for layers in kept
        if layers
    ]


def is_plain(source: ExportSource) -> bool:
    """Whether `write` comes to a plain checkpoint of the family."""
    dense, config = source.dense, source.dense.model.config
    layers = layers_of(source.shape, dense.family)
    pruned = pruned_config(config, dense.family, dense.geometry, layers)
    return plain_config(config, pruned, dense.geometry, layers) is not None


def write(folder: Path, source: ExportSource, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> int:
    """Writes configuration, code, weights and tokenizer; returns the number of values in the
    weights. Where all layers are alike, it is a plain checkpoint of the family, without code.
    """
    dense, model = source.dense, source.dense.model
    layers = layers_of(source.shape, dense.family)
    config = pruned_config(model.config, dense.family, dense.geometry, layers)
    plain = plain_config(model.config, config, dense.geometry, layers)
    if plain is None:
        (folder / CODE).write_text(source_code(model.config.model_type), encoding="utf-8")
    saved = plain or config
    saved.dtype = source.dtype
    saved.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    copy_tokenizer(source.tokenizer_folder, folder)
    return write_shards(
        folder,
        lambda: pruned_tensors(dense, layers),
        dtype=source.dtype,
        max_shard_bytes=max_shard_bytes,
    )


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The files of a tokenizer, as they are."""
    for pattern in TOKENIZER_FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def pruned_model(dense: LoadedModel, shape: ModelShape) -> PreTrainedModel:
    """The pruned model of a dense, sorted one, as it will be when its folder is opened.

    Its tensors are views of the dense model's, so that no second copy is made; nothing may change
    the dense model afterwards.
    """
    model = dense.model
    layers = layers_of(shape, dense.family)
    config = pruned_config(model.config, dense.family, dense.geometry, layers)
    pruned = _without_weights(
        config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
    )
    tensors = {name: tensor.detach() for name, tensor in pruned_tensors(dense, layers)}
    missing, unexpected = pruned.load_state_dict(tensors, strict=False, assign=True)
    pruned.tie_weights()
    _check_names(pruned, missing, unexpected)
    _copy_buffers(model, pruned)
    pruned.generation_config = model.generation_config
    pruned.requires_grad_(False)
    pruned.eval()
    return pruned


def contiguous_model(dense: LoadedModel, shape: ModelShape) -> PreTrainedModel:
    """The same with the strides of one that was loaded from its folder, for what takes its time:
    weights that are narrowed along their rows are copies.
    """
    pruned = pruned_model(dense, shape)
    for parameter in pruned.parameters():
        parameter.data = parameter.data.contiguous()
    return pruned


def _without_weights(config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """The pruned model of a configuration, on the meta device."""
    model_type = dense_type(config.model_type)
    assert model_type is not None
    with torch.device("meta"):
        pruned: PreTrainedModel = _classes(model_type)[2]._from_config(config, **options)
    return pruned


def source_code(model_type: str) -> str:
    """The text of the file of code for one family: the layers, and the family's classes with them
    mixed in.
    """
    config_class, model, causal = _bases(model_type)
    imports: dict[str, list[str]] = {}
    for base in (config_class, model, causal):
        imports.setdefault(base.__module__, []).append(base.__name__)
    lines = "".join(
        f"from {module} import {', '.join(names)}\n" for module, names in sorted(imports.items())
    )
    last_import = "from transformers.cache_utils import Cache\n"
    code = (
        Path(modeling_pruned.__file__)
        .read_text(encoding="utf-8")
        .replace(last_import, last_import + lines)
    )
    return code + _CLASSES.format(
        config=config_class.__name__,
        model=model.__name__,
        causal=causal.__name__,
        model_type=_PREFIX + model_type,
    )


def register() -> None:
    """Lets AutoConfig, AutoModel and AutoModelForCausalLM open pruned models of the known families
    without code from their folders.
    """
    for model_type in FAMILIES:
        register_family(model_type)


def register_family(model_type: str) -> None:
    """The same for one architecture of transformers, named as the dense model names it."""
    if model_type not in _registered:
        config_class, model, causal = _registered[model_type] = _make_classes(model_type)
        AutoConfig.register(config_class.model_type, config_class)
        AutoModel.register(config_class, model)
        AutoModelForCausalLM.register(config_class, causal)


def dense_type(model_type: str) -> str | None:
    """The architecture that a pruned one was cut from; None if it is no pruned one."""
    return model_type.removeprefix(_PREFIX) if model_type.startswith(_PREFIX) else None


def _classes(model_type: str) -> _Classes:
    register_family(model_type)
    return _registered[model_type]


def _bases(model_type: str) -> _Classes:
    """The family's own classes.

    Raises:
        InputError: transformers has none, because the architecture comes with its own code.
    """
    if model_type not in CONFIG_MAPPING:
        raise InputError(
            f"model: architecture {model_type!r} comes with code of its own; pruned models are "
            "written for the architectures of transformers"
        )
    config_class = CONFIG_MAPPING[model_type]
    model: Any = MODEL_MAPPING[config_class]
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    return config_class, model, causal


def _make_classes(model_type: str) -> _Classes:
    """What the file of code defines, made here."""
    config_base, model_base, causal_base = _bases(model_type)
    config = type(
        f"Pruned{config_base.__name__}",
        (config_base,),
        {
            "model_type": _PREFIX + model_type,
            "__doc__": "The family's configuration, and `pruned`.",
        },
    )
    made: list[Any] = [
        type(f"Pruned{base.__name__}", (PrunedLayers, base), {"config_class": config})
        for base in (model_base, causal_base)
    ]
    return config, made[0], made[1]


def _check_names(pruned: PreTrainedModel, missing: list[str], unexpected: list[str]) -> None:
    tied = set(getattr(pruned, "all_tied_weights_keys", None) or {})
    absent = [name for name in missing if name not in tied]
    if absent or unexpected:
        raise InputError(
            f"model: the pruned {pruned.config.model_type!r} would lack {absent[:3]} and have "
            f"{unexpected[:3]} too many; it cannot be exported"
        )


def _copy_buffers(model: nn.Module, pruned: nn.Module) -> None:
    """Buffers that are not saved, such as rotary frequencies, are made with the model: on the meta
    device they are empty.
    """
    for name, buffer in list(pruned.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            source = model.get_submodule(owner).get_buffer(leaf)
            pruned.get_submodule(owner).register_buffer(leaf, source, persistent=False)
