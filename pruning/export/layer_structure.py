"""Whether the layers of a pruned model, made from its configuration, are what the layers were that
they come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from pruning.export.surgery import PrunedLayer
from pruning.models.families import Family

_NUMBERS = ("layer_idx", "layer_id", "layer_number", "training")
"""Attributes that differ from layer to layer without meaning."""


def first_difference(
    dense: nn.Module, pruned: nn.Module, family: Family, layers: Sequence[PrunedLayer]
) -> str | None:
    """What differs first: kind, parameters and plain attributes of the modules of each layer, but
    for blocks that are gone. Both models may be on the meta device.
    """
    before, after = family.decoder_layers(dense), family.decoder_layers(pruned)
    for number, layer in enumerate(layers):
        parts = [
            (family.attention, layer.attention),
            (family.mlp, layer.mlp),
            ("", layer.source),
        ]
        for path, source in parts:
            if source is None:
                continue
            leave_out = () if path else (family.attention, family.mlp)
            wanted = _facts(before[source].get_submodule(path), leave_out)
            made = _facts(after[number].get_submodule(path), leave_out)
            for name in sorted(wanted.keys() | made.keys()):
                if not _same(wanted.get(name), made.get(name)):
                    return (
                        f"layer {number} of what is left would differ from layer {source} of the "
                        f"dense model in {f'{path}.{name}'.strip('.')}"
                    )
    return None


def _facts(module: nn.Module, leave_out: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, inner in module.named_modules():
        if path.split(".")[0] in leave_out:
            continue
        own = {
            name: value
            for name, value in vars(inner).items()
            if isinstance(value, bool | int | float | str | None) and name not in _NUMBERS
        }
        shapes = {
            name: tuple(tensor.shape)
            for tensors in (
                inner.named_parameters(recurse=False),
                inner.named_buffers(recurse=False),
            )
            for name, tensor in tensors
        }
        facts = own | shapes | ({"": type(inner).__name__} if path else {})
        found |= {f"{path}.{name}".strip("."): value for name, value in facts.items()}
    return found


def _same(wanted: Any, made: Any) -> bool:
    if isinstance(wanted, float) and isinstance(made, float):
        return math.isclose(wanted, made, rel_tol=1e-9)
    return bool(wanted == made)
