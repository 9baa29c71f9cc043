"""What the blocks of a 7B take on a GPU over their sizes, and what whole pruned models take: the
sizes are Llama-2-7B's, the weights are drawn at random.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from transformers import PretrainedConfig, PreTrainedModel

from experiments.benchmarks.latency import random_model
from experiments.benchmarks.prefix_reuse import llama_2_7b
from experiments.benchmarks.report import Report
from pruning.costs.accounting import Accounting
from pruning.costs.block_times import Levels, Stack, block_times, seconds_of, stacks_of
from pruning.costs.latency import PHASES, BlockTimes, LatencyTable, Phase
from pruning.costs.speed import SpeedSettings
from pruning.errors import InputError
from pruning.export.transformers import contiguous_model
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.out_of_memory import is_out_of_memory
from pruning.shape import LayerShape, ModelShape

BATCH_SIZES = (1, 8, 32)
PROMPT_TOKENS, NEW_TOKENS = 2048, 16
KV_HEADS = (0, 16, 24, 31, 32)
WIDTHS = (
    *(0, 4096, 6144, 7168, 8192),
    *(8193, 8194, 8196, 8200, 8208, 8224, 8256, 8320, 8448),  # 8,192 and each power of two
    *(9216, 10240, 10752, 11008),
)

Times = Mapping[Stack | ModelShape, Mapping[Phase, Sequence[float]]]

NOTES = (
    "Blocks: one block, from models of eight layers; each of the other kind is whole. Models: all "
    "32 layers. Both are timed in turns in every round; medians over rounds.",
    "of whole: time over that of the whole block or of the dense model. decode: of one token of "
    "every sequence. predicted: (predicted by the blocks - measured) / measured.",
)


def run(*, dtype: str = "bfloat16", num_rounds: int = 3) -> Report:
    """Needs a CUDA device with about 80 GB, fewer for smaller batches."""
    if not torch.cuda.is_available():
        raise InputError("latency_7b: it needs a CUDA device")
    rows = measured_rows(
        llama_2_7b(),
        Levels(KV_HEADS, WIDTHS),
        [SpeedSettings(batch, PROMPT_TOKENS, NEW_TOKENS, num_rounds) for batch in BATCH_SIZES],
        dtype=dtype,
        device="cuda",
    )
    return Report(
        "latency_7b",
        "Latency of Llama-2-7B's sizes on a GPU",
        {
            "device": torch.cuda.get_device_name(),
            "dtype": dtype,
            "load": f"{PROMPT_TOKENS:,} tokens of prompt, then {NEW_TOKENS} new ones; "
            f"{num_rounds} rounds",
        },
        ("batch", "what", "prefill", "of whole", "decode", "of whole", "predicted"),
        rows,
        NOTES,
    )


def measured_rows(
    config: PretrainedConfig,
    levels: Levels,
    loads: Sequence[SpeedSettings],
    *,
    dtype: str,
    device: str,
) -> tuple[tuple[str, ...], ...]:
    """A row for each block and each whole model, under every load that fits into memory."""
    with torch.device(device):
        dense = LoadedModel.of(random_model(config, dtype))
    stacks = stacks_of(dense.geometry, levels)
    names = shapes_of(Accounting(config))
    models: dict[Stack | ModelShape, PreTrainedModel] = {
        **{
            stack: contiguous_model(dense, stack.shape(dense.geometry.num_layers))
            for stack in stacks
        },
        **{shape: contiguous_model(dense, shape) for shape in names},
    }
    rows: list[tuple[str, ...]] = []
    for load in loads:
        try:
            seconds = seconds_of(models, load)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            rows.append((str(load.batch_size), "does not fit into memory", *[""] * 5))
            continue
        times = block_times({stack: seconds[stack] for stack in stacks})
        table = LatencyTable("", "", "", {}, load, max(stack.depth for stack in stacks), times)
        rows += [
            *block_rows(load, times),
            *(model_row(load, table, seconds, shape, names) for shape in names),
        ]
    return tuple(rows)


def shapes_of(accounting: Accounting) -> dict[ModelShape, str]:
    """The dense model and some without 10, 20 and 30 % of its parameters: MLPs of one width, which
    is a multiple of 256, or as near as channels go; fewer KV heads and channels; whole layers.
    """
    dense = accounting.dense
    count, whole = len(dense.layers), dense.layers[0]

    def alike(kv_heads: int, channels: int) -> ModelShape:
        return ModelShape((LayerShape(kv_heads, channels),) * count)

    def width(target: float, step: int, kv_heads: int = whole.kv_heads) -> int:
        """The nearest multiple of a step."""
        return min(
            range(step, whole.mlp_channels, step),
            key=lambda each: abs(accounting.ratio(alike(kv_heads, each)) - target),
        )

    tile = min(256, whole.mlp_channels // 8)
    fewer = whole.kv_heads * 3 // 4
    gone = round(0.2 * count)
    found = {dense: "dense"}
    for target in (0.1, 0.2, 0.3):
        for step in (tile, 1):
            found[alike(whole.kv_heads, width(target, step))] = ""
    found[alike(fewer, width(0.2, tile, fewer))] = ""
    found[ModelShape((*dense.layers[gone:], *(LayerShape(0, 0),) * gone))] = ""
    return {
        shape: name or f"{accounting.ratio(shape):.1%} less: {shape.text}"
        for shape, name in found.items()
    }


def block_rows(load: SpeedSettings, times: BlockTimes) -> list[tuple[str, ...]]:
    """Of every size, the largest last."""
    rows: list[tuple[str, ...]] = []
    for name, sizes in (("KV heads", times.kv_heads), ("channels", times.mlp_channels)):
        whole = sizes[max(sizes)]
        for size, each in sorted(sizes.items()):
            if size:
                rows.append(
                    (
                        str(load.batch_size),
                        f"{size:,} {name}",
                        f"{1e3 * each.prefill.median:.3g} ms",
                        f"{each.prefill.median / whole.prefill.median:.3f}",
                        f"{1e3 * each.decode.median / load.new_tokens:.3g} ms",
                        f"{each.decode.median / whole.decode.median:.3f}",
                        "",
                    )
                )
    return rows


def model_row(
    load: SpeedSettings,
    table: LatencyTable,
    seconds: Times,
    shape: ModelShape,
    names: Mapping[ModelShape, str],
) -> tuple[str, ...]:
    """Of one whole model, measured and predicted."""
    dense = next(iter(names))
    medians = {
        each: {phase: statistics.median(seconds[each][phase]) for phase in PHASES}
        for each in (dense, shape)
    }
    mine = medians[shape]
    errors = [(table.seconds(shape, phase) - mine[phase]) / mine[phase] for phase in PHASES]
    return (
        str(load.batch_size),
        names[shape],
        f"{1e3 * mine['prefill']:.4g} ms",
        f"{mine['prefill'] / medians[dense]['prefill']:.3f}",
        f"{1e3 * mine['decode'] / load.new_tokens:.4g} ms",
        f"{mine['decode'] / medians[dense]['decode']:.3f}",
        " / ".join(f"{error:+.1%}" for error in errors),
    )
