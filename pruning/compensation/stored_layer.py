"""The statistics of one layer in a file of their own: what an evaluator found is on disk as soon as
it comes, and no process holds those of a whole model. Of 70B they are 285 GB.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pruning.compensation.statistics import LayerOrder, LayerStatistics

_ORDER = ("kv_heads", "channels")


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """Reads them whenever they are asked for; see `LayerStatistics`.

    Args:
        path: a file of `save`.
    """

    path: Path

    @staticmethod
    def save(path: Path, found: LayerStatistics, order: LayerOrder, num_tokens: int) -> None:
        """Writes such a file.

        Args:
            order: that of the layer.
            num_tokens: that the matrices were summed over.
        """
        tensors = {"attention": found.attention, "mlp": found.mlp}
        tensors |= {name: torch.tensor(part) for name, part in zip(_ORDER, order, strict=True)}
        save_file({**tensors, "num_tokens": torch.tensor(num_tokens)}, path)

    @property
    def attention(self) -> torch.Tensor:
        return self._read("attention")

    @property
    def mlp(self) -> torch.Tensor:
        return self._read("mlp")

    @property
    def order(self) -> LayerOrder:
        heads, channels = (tuple(self._read(name).tolist()) for name in _ORDER)
        return heads, channels

    @property
    def num_tokens(self) -> int:
        return int(self._read("num_tokens"))

    def _read(self, name: str) -> torch.Tensor:
        with safe_open(self.path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor
