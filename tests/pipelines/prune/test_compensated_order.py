"""Statistics come in layer by layer, and what came is not asked for again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from pipelines.prune.compensated_order import PART, compensated_order, forget_parts
from pipelines.runs.folder import RunFolder
from pruning.compensation.statistics import (
    BlockStatistics,
    LayerOrder,
    LayerStatistics,
    check_statistics,
    read_gram,
)
from pruning.errors import InputError
from pruning.importance.channel_order import STATISTICS, ChannelOrder
from workers.pool.protocol import Pool
from workers.tasks import StatisticsResult, StatisticsTask

NUM_LAYERS, NUM_TOKENS = 5, 999


def matrices(layer: int) -> LayerStatistics:
    draw = torch.Generator().manual_seed(layer)
    return LayerStatistics(torch.rand(8, 8, generator=draw), torch.rand(6, 6, generator=draw))


def order_of_layer(layer: int) -> LayerOrder:
    return (layer % 2, 1 - layer % 2), tuple((channel + layer) % 6 for channel in range(6))


class Evaluators:
    """Those of a pool.

    Args:
        most: tasks that they do before they are lost.
    """

    def __init__(self, most: int) -> None:
        self.most, self.asked = most, list[tuple[int, ...]]()

    def run(self, tasks: Sequence[StatisticsTask]) -> Iterator[list[tuple[Any, Any]]]:
        for task in tasks:
            if len(self.asked) == self.most:
                raise RuntimeError("lost")
            assert task.set_name == "text"
            self.asked.append(task.layers)
            layers = {layer: matrices(layer) for layer in task.layers}
            orders = {layer: order_of_layer(layer) for layer in task.layers}
            yield [(task, StatisticsResult(layers, orders, NUM_TOKENS))]


def found_by(evaluators: Evaluators, folder: RunFolder, *, per_task: int) -> ChannelOrder:
    pool = cast("Pool", evaluators)
    return compensated_order(
        pool, folder, num_layers=NUM_LAYERS, layers_per_task=per_task, set_key="text"
    )


def test_a_run_that_stops_goes_on_with_the_layers_that_are_missing(tmp_path: Path) -> None:
    lost, others, alone = Evaluators(1), Evaluators(9), Evaluators(9)
    with RunFolder(str(tmp_path / "stopped")) as folder:
        with pytest.raises(RuntimeError, match="lost"):
            found_by(lost, folder, per_task=2)
        assert [part.name for part in sorted(folder.path.glob(PART.format(layer="*")))] == [
            "statistics.0.safetensors",
            "statistics.1.safetensors",
        ]
        order = found_by(others, folder, per_task=2)
        forget_parts(folder)
        assert not list(folder.path.glob(PART.format(layer="*")))
    assert (lost.asked, others.asked) == ([(0, 1)], [(2, 3), (4,)])
    with RunFolder(str(tmp_path / "whole")) as folder:
        whole = found_by(alone, folder, per_task=NUM_LAYERS)
    assert alone.asked == [tuple(range(NUM_LAYERS))]
    assert order.fingerprint == whole.fingerprint
    files = [tmp_path / name / STATISTICS for name in ("stopped", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_file_of_all_layers_is_that_of_one_process(tmp_path: Path) -> None:
    """And safetensors' own library reads it."""
    with RunFolder(str(tmp_path / "run")) as folder:
        order = found_by(Evaluators(9), folder, per_task=2)
        path = folder.path / STATISTICS
    layers = {layer: matrices(layer) for layer in range(NUM_LAYERS)}
    together = BlockStatistics.of(layers, NUM_TOKENS)
    together.save(tmp_path / "together")
    assert path.read_bytes() == (tmp_path / "together").read_bytes()
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0, "tensors are aligned"
    found = load_file(path)
    assert int(found.pop("num_tokens")) == NUM_TOKENS
    assert found.keys() == {f"{n}.{b}" for n in range(NUM_LAYERS) for b in ("attention", "mlp")}
    for layer, each in layers.items():
        assert torch.equal(found[f"{layer}.attention"], each.attention)
        assert torch.equal(read_gram(path, layer, "mlp"), each.mlp)
    assert order.compensation is not None
    check_statistics(path, together.fingerprint)
    assert [tuple(row) for row in order.mlp_channels.tolist()] == [
        order_of_layer(layer)[1] for layer in range(NUM_LAYERS)
    ]


def test_a_damaged_layer_is_named(tmp_path: Path) -> None:
    with RunFolder(str(tmp_path)) as folder:
        with pytest.raises(RuntimeError):
            found_by(Evaluators(1), folder, per_task=2)
        (folder.path / "statistics.1.safetensors").write_bytes(b"torn")
        with pytest.raises(InputError, match=r"statistics\.1\.safetensors"):
            found_by(Evaluators(9), folder, per_task=2)
