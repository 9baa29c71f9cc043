"""Files written one tensor at a time hold what the library reads back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pruning.models import shards
from pruning.models.shards import INDEX, write_shards

TENSORS = {
    "rows": torch.arange(35, dtype=torch.float32).reshape(7, 5),
    "transposed": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,
    "scalar": torch.tensor(2.5),
    "ids": torch.tensor([[1, 2**40]]),
    "flags": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 3),
}
"""35 + 12 + 1 + 2 + 3 + 0 values."""


@pytest.mark.parametrize("block_values", [1, 10, 11, 1000])
def test_values_come_back(
    tmp_path: Path, block_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows are written at a time, two rows of five with 10 and 11 values."""
    monkeypatch.setattr(shards, "_BLOCK_VALUES", block_values)
    sizes = []
    blocks = shards._blocks
    monkeypatch.setattr(
        shards,
        "_blocks",
        lambda tensor, dtype: (
            sizes.append(len(block)) or block for block in blocks(tensor, dtype)
        ),
    )
    assert write_shards(tmp_path, TENSORS.items, dtype=torch.bfloat16) == 53
    found = load_file(tmp_path / "model.safetensors")
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        expected = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected), name
    rows = {1: [10] * 7, 10: [20, 20, 20, 10], 11: [20, 20, 20, 10], 1000: [70]}[block_values]
    assert sizes[: len(rows)] == rows
    header = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert length % 8 == 0
    assert length < len(header[8 : 8 + length].rstrip()) + 8, "no more than it takes"
    assert not (tmp_path / INDEX).exists()


def test_the_bytes_of_a_file_stay_what_they_were(tmp_path: Path) -> None:
    """Or a converted model has another fingerprint, and no score of it is found again."""
    write_shards(tmp_path, {"a": torch.tensor([1.0])}.items, dtype=torch.float32)
    header = (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    padded = header + bytes(-len(header) % 8).replace(b"\0", b" ")
    expected = len(padded).to_bytes(8, "little") + padded + b"\x00\x00\x80\x3f"
    assert (tmp_path / "model.safetensors").read_bytes() == expected


def test_a_file_is_as_large_as_allowed_and_no_larger(tmp_path: Path) -> None:
    """Four tensors of 40 bytes, two a file at 80 bytes, one at 79."""
    tensors = {name: torch.full((10,), float(index)) for index, name in enumerate("abcd")}
    for limit, expected in ((80, [["a", "b"], ["c", "d"]]), (79, [["a"], ["b"], ["c"], ["d"]])):
        folder = tmp_path / str(limit)
        folder.mkdir()
        write_shards(folder, tensors.items, dtype=torch.float32, max_shard_bytes=limit)
        files = sorted(folder.glob("*.safetensors"))
        count = len(expected)
        assert [path.name for path in files] == [
            f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)
        ]
        assert [sorted(load_file(path)) for path in files] == expected
        index = json.loads((folder / INDEX).read_text())
        assert index["metadata"] == {"total_size": 160}
        assert index["weight_map"] == {
            name: path.name for path, names in zip(files, expected, strict=True) for name in names
        }
        for path in files:
            for name, tensor in load_file(path).items():
                assert torch.equal(tensor, tensors[name])


def test_another_order_the_second_time_is_an_error(tmp_path: Path) -> None:
    orders = iter([["ids", "flags"], ["flags", "ids"]])
    with pytest.raises(ValueError, match="another order the second time: flags instead of ids"):
        write_shards(
            tmp_path,
            lambda: [(name, TENSORS[name]) for name in next(orders)],
            dtype=torch.float32,
        )
