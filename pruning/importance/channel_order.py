"""The order of channels and KV groups: most important first, so that "remove a group" always means
"drop the last one".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import nn

from pruning.importance.criteria import Importance
from pruning.models.families import Cut, Family
from pruning.models.geometry import Geometry, Part
from pruning.models.loaded_model import LoadedModel

_Indices = npt.NDArray[np.int32]


STATISTICS = "statistics.safetensors"
"""Lies beside the order of a run that compensates."""


@dataclass(frozen=True, slots=True)
class CompensationSource:
    """What narrowed blocks are compensated from (`pruning.compensation`).

    Args:
        path: of the statistics; every machine that computes reads it there.
        statistics: their fingerprint.
        ridge: see `pruning.compensation.least_squares`.
    """

    path: str
    statistics: str
    ridge: float

    @property
    def text(self) -> str:
        """What decides every refitted weight, besides the order."""
        return f"least_squares {self.statistics} {self.ridge!r}"


@dataclass(frozen=True, slots=True)
class RecoverySource:
    """What training added to the matrices of one shape (`pruning.recovery`).

    Args:
        path: of the adapters; every machine that computes reads it there.
        adapters: their fingerprint.
    """

    path: str
    adapters: str


@dataclass(frozen=True, slots=True, eq=False)
class ChannelOrder:
    """For each layer the KV heads and the MLP channels in descending importance: how the weights
    are prepared before a shape is laid over them.

    `kv_heads` [layers, KV heads] and `mlp_channels` [layers, channels] are int32: entry i is the
    index, in the dense checkpoint, of what becomes the i-th.

    Args:
        compensation: what repairs narrowed blocks; None: nothing does.
        recovery: what was trained in the shape that is laid over them; None: nothing was. It is no
            part of the file.
    """

    kv_heads: _Indices
    mlp_channels: _Indices
    compensation: CompensationSource | None = None
    recovery: RecoverySource | None = None

    @classmethod
    def as_stored(cls, geometry: Geometry) -> ChannelOrder:
        """The order of the checkpoint (`importance: none`)."""
        return cls(
            _identity(geometry.num_layers, geometry.kv_heads),
            _identity(geometry.num_layers, geometry.mlp_channels),
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both tables, compensation and recovery, 32 hexadecimal digits."""
        digest = hashlib.sha256()
        for table in (self.kv_heads, self.mlp_channels):
            digest.update(
                str(table.shape).encode() + np.ascontiguousarray(table, dtype="<i4").tobytes()
            )
        if self.compensation is not None:
            digest.update(self.compensation.text.encode())
        if self.recovery is not None:
            digest.update(f"recovery {self.recovery.adapters}".encode())
        return digest.hexdigest()[:32]

    def after(self, current: ChannelOrder) -> ChannelOrder:
        """The order that turns weights sorted by `current` into weights sorted by this one."""
        return ChannelOrder(
            _within(current.kv_heads, self.kv_heads),
            _within(current.mlp_channels, self.mlp_channels),
        )

    def save(self, path: Path) -> None:
        source = self.compensation
        made_of = None
        if source is not None:
            # One entry of metadata: of several, safetensors writes a random order.
            said = {"statistics": source.statistics, "ridge": source.ridge}
            made_of = {"compensation": json.dumps(said)}
        tensors = {"kv_heads": self.kv_heads, "mlp_channels": self.mlp_channels}
        save_file(tensors, path, metadata=made_of)

    @classmethod
    def load(cls, path: Path) -> ChannelOrder:
        """The statistics of one that compensates lie beside it."""
        tensors = load_file(path)
        with safe_open(path, framework="numpy") as file:
            made_of = file.metadata() or {}
        source = None
        if "compensation" in made_of:
            said = json.loads(made_of["compensation"])
            beside = str(path.absolute().with_name(STATISTICS))
            source = CompensationSource(beside, said["statistics"], float(said["ridge"]))
        return cls(tensors["kv_heads"], tensors["mlp_channels"], source)


@torch.inference_mode()
def channel_order(
    loaded: LoadedModel, importance: Importance, batches: Iterable[torch.Tensor] = ()
) -> ChannelOrder:
    """The order of a dense model as stored. Equal importances keep their stored order.

    `l1` is the published one (docs/concepts/method.md, "Weight reordering"): of the weights alone.
    `activation` (docs/concepts/method.md, "The order of channels") multiplies the norm of each
    column of `down_proj` and `o_proj` with the norm of what flows into it over `batches` (int64
    [B, T] each).
    """
    family, geometry = loaded.family, loaded.geometry
    if importance == "none" or not family.prunes_widths:
        return ChannelOrder.as_stored(geometry)
    if importance == "l1":
        scores = [
            (_l1_of_kv_heads(attention, family, geometry), _l1_of_channels(mlp, family, geometry))
            for attention, mlp in loaded.blocks
        ]
    else:
        scores = _activation_scores(loaded, batches)
    return ChannelOrder(
        np.stack([descending(heads) for heads, _ in scores]),
        np.stack([descending(channels) for _, channels in scores]),
    )


@torch.inference_mode()
def reorder(loaded: LoadedModel, order: ChannelOrder) -> None:
    """Sorts the weights of a dense model in place, one parameter at a time.

    The model computes the same function.
    """
    family, geometry = loaded.family, loaded.geometry
    if not family.prunes_widths:
        return
    for index, (attention, mlp) in enumerate(loaded.blocks):
        for block, cuts in ((attention, family.attention_cuts), (mlp, family.mlp_cuts)):
            for cut in cuts:
                _permute(
                    block.get_submodule(cut.module), cut, _row_order(cut, geometry, order, index)
                )


def _l1_of_channels(mlp: nn.Module, family: Family, geometry: Geometry) -> torch.Tensor:
    rows = _row_norms(mlp, family.mlp_cuts, geometry)
    return rows["gate"] + rows["up"] if "gate" in rows else rows["up"]


def _l1_of_kv_heads(attention: nn.Module, family: Family, geometry: Geometry) -> torch.Tensor:
    rows = _row_norms(attention, family.attention_cuts, geometry)
    q = rows["q"].view(geometry.kv_heads, geometry.queries_per_kv_head, geometry.head_dim)
    k, v = (rows[part].view(geometry.kv_heads, 1, geometry.head_dim) for part in ("k", "v"))
    return (q + k + v).mean(dim=(1, 2))


def _row_norms(
    block: nn.Module, cuts: tuple[Cut, ...], geometry: Geometry
) -> dict[str, torch.Tensor]:
    """L1 norm of each row of each part, float32.

    Norm layers are vectors, not projections, and do not count.
    """
    dense = geometry.dense.layers[0]
    norms: dict[str, torch.Tensor] = {}
    for cut in cuts:
        weight = block.get_submodule(cut.module).weight
        assert isinstance(weight, torch.Tensor)
        if cut.dim == 0 and weight.dim() == 2:
            sizes = [geometry.size(part, dense) for part in cut.parts]
            norms |= zip(cut.parts, weight.float().abs().sum(dim=1).cpu().split(sizes), strict=True)
    return norms


def _activation_scores(
    loaded: LoadedModel, batches: Iterable[torch.Tensor]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    columns = (column_cut(loaded.family.attention_cuts), column_cut(loaded.family.mlp_cuts))
    modules = [
        block.get_submodule(cut.module)
        for pair in loaded.blocks
        for block, cut in zip(pair, columns, strict=True)
    ]
    squares: list[torch.Tensor | None] = [None] * len(modules)

    def add(index: int, inputs_BTC: torch.Tensor) -> None:
        total = inputs_BTC.float().square().sum(dim=(0, 1)).double().cpu()
        previous = squares[index]
        squares[index] = total if previous is None else previous + total

    with ExitStack() as hooks:
        for index, module in enumerate(modules):
            handle = module.register_forward_pre_hook(
                lambda _module, inputs, index=index: add(index, inputs[0])
            )
            hooks.callback(handle.remove)
        for batch in batches:
            loaded.model.base_model(input_ids=batch, use_cache=False)
    scores = []
    for module, square in zip(modules, squares, strict=True):
        assert square is not None
        assert isinstance(module.weight, torch.Tensor)
        scores.append(square.sqrt() * module.weight.double().norm(dim=0).cpu())
    heads = [score.view(loaded.geometry.kv_heads, -1).mean(dim=1) for score in scores[0::2]]
    return list(zip(heads, scores[1::2], strict=True))


def column_cut(cuts: tuple[Cut, ...]) -> Cut:
    """The projection back into the residual stream, of which columns are cut."""
    return next(cut for cut in cuts if cut.dim == 1)


def _row_order(cut: Cut, geometry: Geometry, order: ChannelOrder, layer: int) -> torch.Tensor:
    dense = geometry.dense.layers[0]
    pieces, offset = [], 0
    for part in cut.parts:
        pieces.append(part_order(part, geometry, order, layer) + offset)
        offset += geometry.size(part, dense)
    return torch.cat(pieces)


def part_order(part: Part, geometry: Geometry, order: ChannelOrder, layer: int) -> torch.Tensor:
    """Where the rows or columns of one part lie in the dense checkpoint, in this order."""
    if part in ("gate", "up", "down"):
        return torch.tensor(order.mlp_channels[layer], dtype=torch.int64)
    width = geometry.channels_per_kv_head if part == "q" else geometry.head_dim
    heads = torch.tensor(order.kv_heads[layer], dtype=torch.int64)
    return (heads[:, None] * width + torch.arange(width)).flatten()


def _permute(module: nn.Module, cut: Cut, indices: torch.Tensor) -> None:
    for name, dim in (("weight", cut.dim), ("bias", 0)):
        parameter = getattr(module, name, None)
        if parameter is not None and not (name == "bias" and cut.dim == 1):
            # Into the same storage: weights are mapped from their file, and a second copy of each
            # would stay resident beside it.
            parameter.copy_(parameter.index_select(dim, indices.to(parameter.device)))


def descending(scores: torch.Tensor) -> _Indices:
    """Indices by descending score; equal ones keep their order."""
    return torch.sort(scores, descending=True, stable=True).indices.numpy().astype(np.int32)


def _within(current: _Indices, wanted: _Indices) -> _Indices:
    """Where each entry of `wanted` lies in the same row of `current`."""
    return np.take_along_axis(np.argsort(current, axis=1), wanted, axis=1).astype(np.int32)


def _identity(rows: int, columns: int) -> _Indices:
    return np.tile(np.arange(columns, dtype=np.int32), (rows, 1))
