"""What remains of a model: the one representation of a pruned model, and the key of every score."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import index
from typing import Any, Literal, get_args

from pruning.errors import InputError

Kind = Literal["attention", "mlp", "mlp_channels", "attention_heads"]
"""What one step takes away: a whole attention or MLP block, or the last group of MLP channels or KV
heads.
"""

Unit = Literal["kv_heads", "mlp_channels"]
"""What the size of a block counts, by the field of `LayerShape`: of an attention, of an MLP."""

UNITS: tuple[Unit, ...] = get_args(Unit)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """KV heads and MLP channels that remain in one layer; 0 means that the block is gone."""

    kv_heads: int
    mlp_channels: int

    def __post_init__(self) -> None:
        if self.kv_heads < 0 or self.mlp_channels < 0:
            raise ValueError(
                f"a layer cannot keep {self.kv_heads} KV heads and {self.mlp_channels} MLP "
                "channels: both are >= 0"
            )


@dataclass(frozen=True, slots=True)
class Removal:
    """One step of a search: in `layer`, only `remaining` KV heads (attention kinds) or MLP channels
    (MLP kinds) stay.
    """

    kind: Kind
    layer: int
    remaining: int

    def __post_init__(self) -> None:
        if self.kind in ("attention", "mlp") and self.remaining != 0:
            raise ValueError(f"removing the {self.kind} block leaves 0, not {self.remaining}")

    @property
    def unit(self) -> Unit:
        """The field of `LayerShape` that this removal lowers."""
        return "kv_heads" if self.kind in ("attention", "attention_heads") else "mlp_channels"

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "layer": self.layer, self.unit: self.remaining}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Removal:
        remaining = data["kv_heads"] if "kv_heads" in data else data["mlp_channels"]
        return cls(data["kind"], data["layer"], remaining)

    def __str__(self) -> str:
        if self.kind in ("attention", "mlp"):
            return f"{self.kind} block of layer {self.layer}"
        return f"{self.kind} of layer {self.layer} to {self.remaining}"


@dataclass(frozen=True, slots=True)
class Resize:
    """Another size of one block, smaller or larger: what is measured around a shape.

    Args:
        unit: the field of `LayerShape` that `size` is for.
    """

    layer: int
    unit: Unit
    size: int

    def __str__(self) -> str:
        return f"{self.unit} of layer {self.layer} at {self.size}"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The shape of every layer, in order.

    With the weights sorted once, it alone defines the pruned model.
    """

    layers: tuple[LayerShape, ...]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # once: a search looks the same few shapes up for each candidate and batch
        object.__setattr__(self, "_hash", hash(self.layers))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def dense(cls, num_layers: int, kv_heads: int, mlp_channels: int) -> ModelShape:
        return cls((LayerShape(kv_heads, mlp_channels),) * num_layers)

    def without(self, removal: Removal) -> ModelShape:
        """This shape after `removal`.

        Raises:
            ValueError: the removal takes nothing away.
        """
        before = self.layers[removal.layer]
        current = getattr(before, removal.unit)
        if not removal.remaining < current:
            raise ValueError(
                f"{removal} takes nothing away: layer {removal.layer} has {current} {removal.unit}"
            )
        after = replace(before, **{removal.unit: removal.remaining})
        return ModelShape((*self.layers[: removal.layer], after, *self.layers[removal.layer + 1 :]))

    def resized(self, resize: Resize) -> ModelShape:
        """This shape with another size of one block."""
        changed = replace(self.layers[resize.layer], **{resize.unit: resize.size})
        before, after = self.layers[: resize.layer], self.layers[resize.layer + 1 :]
        return ModelShape((*before, changed, *after))

    def changed(self, change: Removal | Resize | None) -> ModelShape:
        """This shape after a candidate's change; None is the shape itself."""
        if change is None:
            return self
        return self.resized(change) if isinstance(change, Resize) else self.without(change)

    def first_difference(self, other: ModelShape) -> int:
        """Index of the first layer in which the two differ; the number of layers when they are
        equal.
        """
        pairs = zip(self.layers, other.layers, strict=True)
        return next(
            (index for index, (mine, theirs) in enumerate(pairs) if mine != theirs),
            len(self.layers),
        )

    @property
    def text(self) -> str:
        """Canonical text: `KV heads x MLP channels` of each layer, runs of equal layers counted,
        such as `4x172*2 0x172 4x43`.
        """
        words: list[str] = []
        previous, run = None, 0
        for layer in (*self.layers, None):
            if layer == previous:
                run += 1
                continue
            if previous is not None:
                words.append(
                    f"{previous.kv_heads}x{previous.mlp_channels}" + (f"*{run}" if run > 1 else "")
                )
            previous, run = layer, 1
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> ModelShape:
        """The inverse of `text`."""
        layers: list[LayerShape] = []
        for word in text.split():
            match = re.fullmatch(r"(\d+)x(\d+)(?:\*(\d+))?", word)
            if match is None:
                raise InputError(
                    f"not a shape: {word!r} in {text!r}; expected words such as 4x172 or 4x172*3"
                )
            heads, channels, run = match.groups(default="1")
            layers += [LayerShape(int(heads), int(channels))] * int(run)
        return cls(tuple(layers))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical text, 32 hexadecimal digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": [
                {"kv_heads": layer.kv_heads, "mlp_channels": layer.mlp_channels}
                for layer in self.layers
            ],
            "text": self.text,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelShape:
        try:
            return cls(
                tuple(
                    LayerShape(index(layer["kv_heads"]), index(layer["mlp_channels"]))
                    for layer in data["layers"]
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                'not a shape file: expected {"layers": [{"kv_heads": .., "mlp_channels": ..}, ..]} '
                f"with whole numbers >= 0: {error}"
            ) from error
