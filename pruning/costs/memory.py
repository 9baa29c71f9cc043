"""Memory that a model takes to serve: its weights, and its KV cache at a stated load."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.models.dtypes import NUM_BYTES
from pruning.shape import ModelShape

_UNITS: dict[str, int] = {
    f"{letter}{kind}B": base ** (power + 1)
    for power, letter in enumerate("kMGT")
    for kind, base in (("", 1000), ("i", 1024))
}
_UNITS |= {"B": 1, "KB": 1000, "KiB": 1024}


@dataclass(frozen=True, slots=True)
class MemoryLoad:
    """What is served at once.

    Args:
        context_length: tokens of each sequence that the cache holds.
        batch_size: sequences.
        dtype: of weights and cache.
    """

    context_length: int
    batch_size: int
    dtype: str

    def weight_bytes(self, accounting: Accounting, shape: ModelShape) -> int:
        """Of the tensors that a checkpoint of that shape has."""
        return accounting.num_stored_parameters(shape) * NUM_BYTES[self.dtype]

    def cache_bytes(self, accounting: Accounting, shape: ModelShape) -> int | None:
        """Of all sequences at the end of the context; None: not known."""
        found = accounting.kv_cache_bytes(
            shape, context_length=self.context_length, bytes_per_value=NUM_BYTES[self.dtype]
        )
        return None if found is None else self.batch_size * found

    def total_bytes(self, accounting: Accounting, shape: ModelShape) -> int | None:
        """Of both; None: not known."""
        cache = self.cache_bytes(accounting, shape)
        return None if cache is None else self.weight_bytes(accounting, shape) + cache

    def to_json(self, accounting: Accounting, shape: ModelShape) -> dict[str, Any]:
        """As the files of a run have it."""
        return {
            **asdict(self),
            "weights": {
                "dense": self.weight_bytes(accounting, accounting.dense),
                "pruned": self.weight_bytes(accounting, shape),
            },
            "kv_cache": {
                "dense": self.cache_bytes(accounting, accounting.dense),
                "pruned": self.cache_bytes(accounting, shape),
            },
        }


def bytes_of(size: str) -> int:
    """Of a size such as `16GB`, `1.5 GiB` or `100MB`; 1 GB is 10^9 bytes, 1 GiB 2^30.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) *([A-Za-z]+)", size.strip())
    if found is None or found[2] not in _UNITS or not (count := float(found[1])):
        raise InputError(f"{size}; a size is a number above 0 with its unit, as 16GB or 100MiB")
    return round(count * _UNITS[found[2]])


def shown_bytes(count: float) -> str:
    """Four digits, in the decimal unit that suits."""
    unit = next((each for each in ("TB", "GB", "MB", "kB") if count >= _UNITS[each]), "B")
    return f"{count / _UNITS[unit]:.4g} {unit}"
