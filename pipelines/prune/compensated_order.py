"""The channel order of a compensated search, with the statistics that compensate: a pass over the
text for each group of layers. The layers of a pass are on disk as soon as it ends, so that a run
that stops goes on with the next one, and memory holds those of one pass.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

from pipelines.runs.files import read_with
from pipelines.runs.folder import RunFolder
from pruning.compensation.least_squares import RIDGE
from pruning.compensation.statistics import BlockStatistics, order_of, stored_fingerprint
from pruning.compensation.stored_layer import StoredLayer
from pruning.importance.channel_order import STATISTICS, ChannelOrder, CompensationSource
from workers.pool.protocol import Pool
from workers.tasks import StatisticsResult, StatisticsTask

log = logging.getLogger(__name__)

PART = "statistics.{layer}.safetensors"
"""Of one layer, until `statistics.safetensors` has all."""


def compensated_order(
    pool: Pool, folder: RunFolder, *, num_layers: int, layers_per_task: int, set_key: str
) -> ChannelOrder:
    """The order `activation`, and the statistics beside it.

    Args:
        layers_per_task: that one pass over the text collects.
        set_key: name of the text on the evaluators.

    Raises:
        InputError: what an earlier process of the run found cannot be read.
    """
    names = [PART.format(layer=layer) for layer in range(num_layers)]
    parts = [StoredLayer(folder.path / name) for name in names]
    missing = [layer for layer, part in enumerate(parts) if not part.path.exists()]
    if 0 < len(missing) < num_layers:
        log.info("statistics of %d of %d layers are there", num_layers - len(missing), num_layers)
    tasks = [
        StatisticsTask(tuple(missing[first : first + layers_per_task]), set_key)
        for first in range(0, len(missing), layers_per_task)
    ]
    for answers in pool.run(tasks):
        for _, result in answers:
            assert isinstance(result, StatisticsResult)
            for layer, found in result.layers.items():
                order, num_tokens = result.orders[layer], result.num_tokens
                folder.write_with(
                    names[layer],
                    partial(StoredLayer.save, found=found, order=order, num_tokens=num_tokens),
                )
    orders = [
        read_with(lambda path: StoredLayer(path).order, part.path, option="output_dir")
        for part in parts
    ]
    statistics = BlockStatistics(tuple(parts), parts[0].num_tokens)
    path = folder.write_with(STATISTICS, statistics.save)
    source = CompensationSource(str(path), stored_fingerprint(path), RIDGE)
    return replace(order_of(orders), compensation=source)


def forget_parts(folder: RunFolder) -> None:
    """Once the order is on disk, too."""
    for path in folder.path.glob(PART.format(layer="*")):
        path.unlink()
