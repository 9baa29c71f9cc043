"""Settings that say by number what each layer is, for the layers that are left."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pruning.export.surgery import PrunedLayer

_FIRST_DENSE = ("first_k_dense_replace", "num_dense_layers")
_COUNTS_LAYERS = re.compile(r"layer(?!_?norm|drop)|first_k_|_interval$|_pattern$|_step$|_depth$")


def shifted_settings(
    values: Mapping[str, Any], layers: Sequence[PrunedLayer], num_layers: int
) -> dict[str, Any]:
    """A configuration with what counts layers changed to mean the same layers after pruning.

    - A list with an entry for each layer, such as `layer_types`, keeps the entries of those left.
    - `first_k_dense_replace` and the like count the layers below it that are left.
    - `mlp_only_layers` and `decoder_sparse_step` become the numbers of what is dense of them.
    - `scale_depth`, which is divided by the root of the number of layers, keeps the quotient.

    Args:
        values: of the dense model.
        num_layers: of the dense model.
    """
    found = dict(values)
    for name, value in values.items():
        per_layer = isinstance(value, list) and len(value) == num_layers
        if per_layer and not name.startswith("_") and not name.endswith("_token_id"):
            found[name] = [value[layer.source] for layer in layers]
        elif name in _FIRST_DENSE and isinstance(value, int):
            found[name] = sum(_mlp_source(layer) < value for layer in layers)
    if "mlp_only_layers" in values and "decoder_sparse_step" in values:
        only, step = values["mlp_only_layers"] or [], values["decoder_sparse_step"]
        sources = [_mlp_source(layer) for layer in layers]
        found["decoder_sparse_step"] = 1
        found["mlp_only_layers"] = [
            number
            for number, source in enumerate(sources)
            if source in only or (source + 1) % step != 0
        ]
    if isinstance(values.get("scale_depth"), float | int):
        found["scale_depth"] = values["scale_depth"] * math.sqrt(len(layers) / num_layers)
    return found


def layer_settings(values: Mapping[str, Any]) -> list[str]:
    """What of a configuration may count layers, as `name=value`."""
    return [
        f"{name}={value}"
        for name, value in sorted(values.items())
        if _COUNTS_LAYERS.search(name)
        and name not in ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
        and isinstance(value, int | list)
        and not isinstance(value, bool)
    ]


def _mlp_source(layer: PrunedLayer) -> int:
    return layer.source if layer.mlp is None else layer.mlp
