"""Safetensors files written one tensor at a time: the library writes a file from tensors that are
all in memory, and here they never are.

The format is a length (8 bytes, little endian), a JSON header of that length, and the tensors'
bytes one after the other (safetensors' README, "Format"). Whatever is written here is read back by
the library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pruning.canonical_json import dump_json

MAX_SHARD_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BLOCK_VALUES = 4_000_000
"""Values that are cast and written at a time."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_values * self.dtype.itemsize


def write_shards(
    folder: Path,
    tensors: Callable[[], Iterable[tuple[str, torch.Tensor]]],
    *,
    dtype: torch.dtype,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Writes `model.safetensors`, or several files and their index where one would be larger than
    `max_shard_bytes`.

    Args:
        tensors: gives name and tensor, the same each time. It is asked twice, first for the sizes,
            then for the values, and one tensor is held at a time.
        dtype: of floating-point tensors in the files.

    Returns:
        Values written, all tensors together.
    """
    entries = [
        _Entry(name, tuple(tensor.shape), dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors()
    ]
    shards = _split(entries, max_shard_bytes)
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [
            f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            for number in range(1, len(shards) + 1)
        ]
    )
    values = iter(tensors())
    for file_name, shard in zip(names, shards, strict=True):
        with (folder / file_name).open("wb") as file:
            file.write(_header(shard))
            for entry, (name, tensor) in zip(
                shard, values, strict=False
            ):  # `shard` comes first: it ends, and takes nothing from `values`
                if entry.name != name:
                    raise ValueError(
                        f"tensors came in another order the second time: {name} instead of "
                        f"{entry.name}"
                    )
                for block in _blocks(tensor, entry.dtype):
                    file.write(block)
    if len(shards) > 1:
        weight_map = {
            entry.name: file_name
            for file_name, shard in zip(names, shards, strict=True)
            for entry in shard
        }
        total_size = sum(entry.num_bytes for entry in entries)
        (folder / INDEX).write_text(
            dump_json({"metadata": {"total_size": total_size}, "weight_map": weight_map}),
            encoding="utf-8",
        )
    return sum(entry.num_values for entry in entries)


def _split(entries: list[_Entry], max_shard_bytes: int) -> list[list[_Entry]]:
    shards: list[list[_Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.num_bytes
    return shards


def _header(entries: list[_Entry]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.num_bytes],
        }
        offset += entry.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (
        -len(text) % 8
    )  # the tensors begin at a multiple of 8, as the library wants it for mapping
    return len(text).to_bytes(8, "little") + text


def _blocks(tensor: torch.Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """The values in row-major order as bytes, some rows at a time.

    Nothing is copied where dtype and layout are right already.
    """
    rows = tensor.detach()
    rows = rows.reshape(1) if rows.dim() == 0 else rows
    per_block = max(1, _BLOCK_VALUES // max(1, rows[:1].numel()))
    for start in range(0, len(rows), per_block):
        block = rows[start : start + per_block].to("cpu", dtype).contiguous()
        yield memoryview(block.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
