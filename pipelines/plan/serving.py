"""What fits where: memory that a model takes to serve, and how much of it would have to go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from pipelines.config.target import load_in_words
from pruning.costs.accounting import NOT_KNOWN, Accounting
from pruning.costs.memory import MemoryLoad, bytes_of, shown_bytes
from pruning.shape import LayerShape, ModelShape

_SIZES = tuple(
    f"{size}GB" for size in (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 80, 96, 141, 192, 288, 640, 1128)
)
"""Memory of devices that are sold, and of eight of the large ones."""
_NUM_SMALLER = 3
"""Sizes that are shown below the first in which all fits."""


def serving(accounting: Accounting, load: MemoryLoad) -> dict[str, Any]:
    """For plan.json: what the dense model takes at a load, and the share of the parameters that
    would have to go for it to fit in smaller memory, its cache left whole. None: no pruning of
    blocks gets there, or the cache is not known.
    """
    dense = accounting.dense
    weights, cache = load.weight_bytes(accounting, dense), load.cache_bytes(accounting, dense)
    found: dict[str, Any] = {**asdict(load), "weights": weights, "kv_cache": cache, "fits": {}}
    if cache is None:
        return found
    empty = ModelShape((LayerShape(0, 0),) * len(dense.layers))
    most = accounting.ratio(empty)
    first = next(
        (number for number, size in enumerate(_SIZES) if bytes_of(size) >= weights + cache),
        len(_SIZES),
    )
    for size in _SIZES[max(0, first - _NUM_SMALLER) : first + 1]:
        ratio = max(0.0, (weights + cache - bytes_of(size)) / weights)
        found["fits"][size] = ratio if ratio <= most else None
    return found


def serving_rows(memory: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """The same for people."""
    cache = memory["kv_cache"]
    shown = NOT_KNOWN if cache is None else shown_bytes(cache)
    yield load_in_words(memory), "", f"{shown_bytes(memory['weights'])} + {shown}", ""
    for size, ratio in memory["fits"].items():
        said = "whole" if ratio == 0 else "not by pruning" if ratio is None else f"less {ratio:.4f}"
        yield f"fits in {size}", "", said, ""
