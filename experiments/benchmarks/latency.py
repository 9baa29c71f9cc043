"""A table of latencies against whole models: what the sum over blocks predicts, and what pruned
models take, timed in turns in one run.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from experiments.benchmarks import workload
from experiments.benchmarks.report import Report
from pruning.costs.block_times import Levels, Stack, block_times, depth_of, stacks_of
from pruning.costs.latency import PHASES, LatencyTable, Phase
from pruning.costs.speed import SpeedSettings
from pruning.costs.timed_runs import TimedRun, timed_runs
from pruning.export.transformers import pruned_model
from pruning.models.dtypes import resolve_dtype
from pruning.models.loaded_model import LoadedModel
from pruning.shape import LayerShape, ModelShape

MEDIAN_BOUND, LARGEST_BOUND = 0.05, 0.10
PROMPT_TOKENS, NEW_TOKENS = 256, 16

NOTES = (
    "error: (predicted - measured) / measured, of the medians over rounds; noise: how far the "
    "median of the even rounds is from that of the odd ones, in the same measurement.",
    "Tables and whole models take turns in every round. A shape is KV heads x channels of each "
    "layer; where there are several, they repeat.",
)


def run(*, dtype: str = "auto", num_rounds: int = 8) -> Report:
    """SmolLM2, and a random Llama of 1,024 hidden and 8 layers."""
    dtype = resolve_dtype(dtype, on_gpu=False)
    settings = SpeedSettings(1, PROMPT_TOKENS, NEW_TOKENS, num_rounds)
    torch.set_num_threads(1)
    models = {
        "SmolLM2-135M": workload.checkpoint().load(dtype=dtype),
        "random Llama": random_model(wide_llama(), dtype),
    }
    rows: list[tuple[str, ...]] = []
    errors: list[float] = []
    for name, model in models.items():
        for shape, phase, error, noise, seconds in compared(model, settings):
            rows.append(
                (name, shape, phase, f"{1000 * seconds:.1f} ms", f"{error:+.1%}", f"{noise:.1%}")
            )
            errors.append(abs(error))
    middle, largest = statistics.median(errors), max(errors)
    return Report(
        "latency",
        "Predicted and measured times of pruned models",
        {
            "models": "SmolLM2-135M, and a random Llama (hidden 1,024, 8 layers, MLPs of 2,816)",
            "dtype, threads": f"{dtype}, 1",
            "load": f"1 x {PROMPT_TOKENS} tokens of prompt, {NEW_TOKENS} new, {num_rounds} rounds",
        },
        ("model", "shape", "phase", "measured", "error", "noise"),
        (*rows, ("all", "", "", "", f"median {middle:.1%}, largest {largest:.1%}", "")),
        NOTES,
        tuple(
            f"the {word} error is {found:.1%}, above {bound:.0%}"
            for word, found, bound in (
                ("median", middle, MEDIAN_BOUND),
                ("largest", largest, LARGEST_BOUND),
            )
            if found > bound
        ),
    )


def compared(
    model: PreTrainedModel, settings: SpeedSettings
) -> list[tuple[str, Phase, float, float, float]]:
    """Shape, phase, relative error of the prediction, relative noise, seconds measured."""
    dense = LoadedModel.of(model)
    geometry = dense.geometry
    stacks = stacks_of(geometry, Levels.of(geometry))
    wholes = shapes_of(geometry.dense)
    cut: dict[Stack | ModelShape, PreTrainedModel] = {
        **{stack: _cut(dense, stack.shape(geometry.num_layers)) for stack in stacks},
        **{shape: _cut(dense, shape) for shape in wholes},
    }
    runs = timed_runs(cut, settings)
    times = block_times(
        {stack: {phase: _seconds(runs[stack], phase) for phase in PHASES} for stack in stacks}
    )
    table = LatencyTable("", "", "", {}, settings, depth_of(geometry), times)
    return [
        (name, phase, *_judged(table.seconds(shape, phase), _seconds(runs[shape], phase)))
        for shape, name in wholes.items()
        for phase in PHASES
    ]


def shapes_of(dense: ModelShape) -> Mapping[ModelShape, str]:
    """Six shapes, some of widths that no table has: even ones, deep ones, and mixtures."""
    heads, channels = dense.layers[0].kv_heads, dense.layers[0].mlp_channels
    fewer, count = max(1, heads - 1), len(dense.layers)
    wanted = [
        [(heads, channels)],
        [(heads, channels * 3 // 4)],
        [(heads, channels // 2)],
        [(fewer, channels * 5 // 8 + 8)],
        [(heads, channels), (fewer, channels // 3), (heads, channels // 2 + 24)],
        [(heads, channels // 4), (heads, channels)],
    ]
    return {
        ModelShape(tuple(LayerShape(*each[layer % len(each)]) for layer in range(count))): (
            " / ".join(f"{k} x {c}" for k, c in each)
        )
        for each in wanted
    }


def wide_llama() -> PretrainedConfig:
    """The configuration of the random model."""
    return AutoConfig.for_model(
        "llama",
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )


def random_model(config: PretrainedConfig, dtype: str) -> PreTrainedModel:
    """One with random weights, in evaluation mode."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.eval()
    return model


def _cut(dense: LoadedModel, shape: ModelShape) -> PreTrainedModel:
    model = pruned_model(dense, shape)
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model


def _seconds(runs: Sequence[TimedRun], phase: Phase) -> list[float]:
    return [run.prefill_s if phase == "prefill" else run.decode_s for run in runs]


def _judged(predicted: float, measured: Sequence[float]) -> tuple[float, float, float]:
    found = statistics.median(measured)
    even, odd = statistics.median(measured[::2]), statistics.median(measured[1::2])
    return (predicted - found) / found, abs(even - odd) / found, found
