"""Second moments of what flows into `o_proj` and `down_proj`: all that the order `activation` and
the least-squares compensation need to know of a text.

Shape letters: B sequences of a batch, T tokens of a sequence, C input channels of a projection.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pruning.errors import InputError
from pruning.importance.channel_order import ChannelOrder, column_cut, descending
from pruning.models.loaded_model import BlockName, LoadedModel


@dataclass(frozen=True, slots=True, eq=False)
class LayerStatistics:
    """Gram matrices of one layer of the dense model as stored, summed over all tokens.

    `attention` [C, C] of the input of `o_proj`, `mlp` [C, C] of the input of `down_proj`, float32:
    sums are float64 and rounded once.
    """

    attention: torch.Tensor
    mlp: torch.Tensor


class Grams(Protocol):
    """What has the matrices of a layer, in memory or on disk: see `LayerStatistics`."""

    @property
    def attention(self) -> torch.Tensor: ...

    @property
    def mlp(self) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class BlockStatistics:
    """Those of every layer of a dense model, over `num_tokens` tokens. Of layers on disk one matrix
    at a time is in memory.
    """

    layers: tuple[Grams, ...]
    num_tokens: int

    @classmethod
    def of(cls, layers: Mapping[int, LayerStatistics], num_tokens: int) -> BlockStatistics:
        """Joins what several evaluators collected, each for layers of its own."""
        assert sorted(layers) == list(range(len(layers))), "a layer is missing"
        return cls(tuple(layers[index] for index in range(len(layers))), num_tokens)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all matrices, 32 hexadecimal digits."""
        return self._summed_up()[0]

    def _summed_up(self) -> tuple[str, dict[str, tuple[int, ...]]]:
        """Fingerprint and shapes, for which each matrix is read once."""
        digest, shapes = hashlib.sha256(str(self.num_tokens).encode()), {}
        for name, gram in self._grams():
            digest.update(str(gram.shape).encode())
            digest.update(gram.data)
            shapes[name] = gram.shape
        return digest.hexdigest()[:32], shapes

    def save(self, path: Path) -> None:
        """As safetensors, which its library writes only from memory: a header of JSON, its length
        before it, then the data.
        """
        fingerprint, shapes = self._summed_up()
        header: dict[str, Any] = {"__metadata__": {"fingerprint": fingerprint}}
        header["num_tokens"] = {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}
        end = 8
        for name, shape in shapes.items():
            start, end = end, end + 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.write(struct.pack("<q", self.num_tokens))
            for _, gram in self._grams():
                file.write(gram.data)

    def _grams(self) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        for index, layer in enumerate(self.layers):
            yield f"{index}.attention", np.ascontiguousarray(layer.attention.numpy(), dtype="<f4")
            yield f"{index}.mlp", np.ascontiguousarray(layer.mlp.numpy(), dtype="<f4")

    def order(self, loaded: LoadedModel) -> ChannelOrder:
        """The order `activation` (see `pruning.importance.channel_order`): the norm of what flows
        into each column, which is the diagonal, times the norm of the column.
        """
        orders = [layer_order(loaded, index, layer) for index, layer in enumerate(self.layers)]
        return order_of(orders)


LayerOrder = tuple[tuple[int, ...], tuple[int, ...]]
"""KV heads and MLP channels of one layer in descending importance."""


def layer_order(loaded: LoadedModel, layer: int, statistics: Grams) -> LayerOrder:
    """The order `activation` of one layer of a dense model as stored."""
    attention, mlp = projections(loaded)[layer]
    of_heads = _importance(statistics.attention, attention)
    heads = descending(of_heads.view(loaded.geometry.kv_heads, -1).mean(dim=1))
    channels = descending(_importance(statistics.mlp, mlp))
    return tuple(heads.tolist()), tuple(channels.tolist())


def order_of(layers: Sequence[LayerOrder]) -> ChannelOrder:
    """The order of a whole model from those of its layers."""
    heads, channels = zip(*layers, strict=True)
    return ChannelOrder(np.array(heads, dtype=np.int32), np.array(channels, dtype=np.int32))


def stored_fingerprint(path: Path) -> str:
    """What a file of `BlockStatistics.save` says, 32 hexadecimal digits; else "".

    Raises:
        OSError, SafetensorError: it cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        return str((file.metadata() or {}).get("fingerprint", ""))


def check_statistics(path: Path, fingerprint: str) -> None:
    """Raises InputError where `path` does not hold the statistics with that fingerprint."""
    try:
        found = stored_fingerprint(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: the statistics that this model is compensated with cannot be read ({error}); "
            "they must be on storage that every evaluator reaches"
        ) from error
    if found != fingerprint:
        raise InputError(
            f"{path}: holds statistics {found}, not {fingerprint}, with which this model is "
            "compensated; give the file of that run back"
        )


def read_gram(path: Path, layer: int, block: BlockName) -> torch.Tensor:
    """One Gram matrix, float32 [C, C], in the order of the dense model as stored."""
    with safe_open(path, framework="pt") as file:
        gram: torch.Tensor = file.get_tensor(f"{layer}.{block}")
    return gram


def projections(loaded: LoadedModel) -> list[tuple[nn.Module, nn.Module]]:
    """`o_proj` and `down_proj` of every layer, by whatever name the family calls them."""
    family = loaded.family
    names = (column_cut(family.attention_cuts).module, column_cut(family.mlp_cuts).module)
    return [
        (attention.get_submodule(names[0]), mlp.get_submodule(names[1]))
        for attention, mlp in loaded.blocks
    ]


@torch.inference_mode()
def collect_statistics(
    loaded: LoadedModel, batches: Iterable[torch.Tensor], layers: Iterable[int] | None = None
) -> dict[int, LayerStatistics]:
    """Gram matrices of some layers of a dense model as stored over `batches` (int64 [B, T] each,
    without padding).

    A batch's products are float32 at least, batches are added in float64 in their order: the bits
    do not depend on which layers are collected together.
    """
    wanted = tuple(range(loaded.geometry.num_layers) if layers is None else layers)
    modules = projections(loaded)
    sums: dict[tuple[int, int], torch.Tensor] = {}

    def add(key: tuple[int, int], inputs_BTC: torch.Tensor) -> None:
        inputs = inputs_BTC.flatten(0, -2).float()
        gram = (inputs.T @ inputs).double()
        sums[key] = sums[key].add_(gram) if key in sums else gram

    watched = {(layer, kind): modules[layer][kind] for layer in wanted for kind in (0, 1)}
    with _inputs_of(watched, add):
        for batch in batches:
            loaded.model.base_model(input_ids=batch, use_cache=False)
    return {  # each sum goes as it is rounded
        layer: LayerStatistics(*(sums.pop((layer, kind)).float().cpu() for kind in (0, 1)))
        for layer in wanted
    }


@contextmanager
def _inputs_of(
    modules: Mapping[tuple[int, int], nn.Module],
    add: Callable[[tuple[int, int], torch.Tensor], None],
) -> Iterator[None]:
    with ExitStack() as hooks:
        for key, module in modules.items():
            handle = module.register_forward_pre_hook(
                lambda _module, inputs, key=key: add(key, inputs[0])
            )
            hooks.callback(handle.remove)
        yield


def _importance(gram: torch.Tensor, projection: nn.Module) -> torch.Tensor:
    weight = projection.weight
    assert isinstance(weight, torch.Tensor)
    norms: torch.Tensor = weight.double().norm(dim=0).cpu()
    return gram.diagonal().double().sqrt() * norms
