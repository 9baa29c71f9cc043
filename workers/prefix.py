"""What an evaluator holds of one task that the next can use: outputs of the lowest layers."""

from __future__ import annotations

from functools import lru_cache

from pruning.shape import ModelShape

PrefixKey = tuple[str, int, str]
"""What a prefix depends on: calibration set, batch, and canonical text of the base."""


def missing_layers(asked: PrefixKey, held: PrefixKey | None, num_layers: int) -> int:
    """Layers of a prefix that an evaluator still has to run, which holds another, or none: from the
    first on in which the two bases differ.
    """
    if held is None or held[:2] != asked[:2]:
        return num_layers
    return num_layers - _same_layers(held[2], asked[2]) if held != asked else 0


@lru_cache(maxsize=4096)
def _same_layers(one: str, other: str) -> int:
    """The lowest layers in which two shapes agree, by their canonical texts."""
    return ModelShape.parse(one).first_difference(ModelShape.parse(other))
