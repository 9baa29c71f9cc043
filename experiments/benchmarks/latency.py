"""A table of latencies against whole models: what the sum over blocks predicts, and what pruned
models take, timed in turns in one run.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from experiments.benchmarks import workload
from experiments.benchmarks.report import Report
from pruning.costs.accounting import Accounting
from pruning.costs.block_times import (
    Levels,
    Stack,
    block_times,
    depth_of,
    seconds_of,
    stacks_of,
)
from pruning.costs.latency import PHASES, LatencyTable, Phase
from pruning.costs.speed import SpeedSettings
from pruning.export.transformers import contiguous_model
from pruning.models.dtypes import resolve_dtype
from pruning.models.loaded_model import LoadedModel
from pruning.shape import LayerShape, ModelShape

MEDIAN_BOUND, LARGEST_BOUND = 0.05, 0.10
PROMPT_TOKENS, NEW_TOKENS = 256, 16
MIN_ROUNDS = 2
"""Of fewer, nothing can be drawn again."""

_NUM_DRAWS = 200

NOTES = (
    "error: (predicted - measured) / measured, of the medians over rounds, with its standard "
    f"error: over {_NUM_DRAWS} draws of as many rounds with replacement, each for the table and "
    "the measurement together. Of few rounds it is rough.",
    "Tables and whole models take turns in every round. A shape is KV heads x channels of each "
    "layer; where there are several, they repeat.",
)


@dataclass(frozen=True, slots=True)
class Compared:
    """One phase of one shape.

    Args:
        seconds: measured, the median of the rounds.
        error: (predicted - measured) / measured.
        standard_error: of `error`.
    """

    shape: str
    phase: Phase
    seconds: float
    error: float
    standard_error: float


def run(*, dtype: str = "auto", num_rounds: int = 8) -> Report:
    """SmolLM2, and a random Llama of 1,024 hidden and 8 layers."""
    dtype = resolve_dtype(dtype, on_gpu=False)
    settings = SpeedSettings(1, PROMPT_TOKENS, NEW_TOKENS, num_rounds)
    torch.set_num_threads(1)
    models = {
        "SmolLM2-135M": workload.checkpoint().load(dtype=dtype),
        "random Llama": random_model(wide_llama(), dtype),
    }
    found = {name: compared(model, settings) for name, model in models.items()}
    errors = [abs(each.error) for of_model in found.values() for each in of_model]
    middle, largest = statistics.median(errors), max(errors)
    return Report(
        "latency",
        "Predicted and measured times of pruned models",
        {
            "models": "SmolLM2-135M, and a random Llama (hidden 1,024, 8 layers, MLPs of 2,816)",
            "dtype, threads": f"{dtype}, 1",
            "load": f"1 x {PROMPT_TOKENS} tokens of prompt, {NEW_TOKENS} new, {num_rounds} rounds",
        },
        ("model", "shape", "phase", "measured", "error", "its standard error"),
        (
            *(row(name, each) for name, of_model in found.items() for each in of_model),
            ("all", "", "", "", f"median {middle:.1%}, largest {largest:.1%}", ""),
        ),
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


def row(model: str, found: Compared) -> tuple[str, ...]:
    """Of the table."""
    return (
        model,
        found.shape,
        found.phase,
        f"{1000 * found.seconds:.1f} ms",
        f"{found.error:+.1%}",
        f"{found.standard_error:.1%}",
    )


def compared(model: PreTrainedModel, settings: SpeedSettings) -> list[Compared]:
    """Every shape of `shapes_of` in every phase."""
    dense = LoadedModel.of(model)
    geometry = dense.geometry
    depth = depth_of(Accounting(model.config), str(model.dtype).removeprefix("torch."))
    stacks = stacks_of(geometry, Levels.of(geometry, depth=depth))
    wholes = shapes_of(geometry.dense)
    cut: dict[Stack | ModelShape, PreTrainedModel] = {
        **{stack: contiguous_model(dense, stack.shape(geometry.num_layers)) for stack in stacks},
        **{shape: contiguous_model(dense, shape) for shape in wholes},
    }
    seconds = seconds_of(cut, settings)
    table = {stack: seconds[stack] for stack in stacks}
    return judged(table, {shape: seconds[shape] for shape in wholes}, wholes)


def judged(
    table: Mapping[Stack, Mapping[Phase, Sequence[float]]],
    measured: Mapping[ModelShape, Mapping[Phase, Sequence[float]]],
    names: Mapping[ModelShape, str],
) -> list[Compared]:
    """What the stacks of a table say of whole models that were timed in the same rounds."""
    num_rounds = len(next(iter(measured.values()))["prefill"])
    draw = random.Random(0)
    draws = [draw.choices(range(num_rounds), k=num_rounds) for _ in range(_NUM_DRAWS)]
    errors = _errors(table, measured, range(num_rounds))
    drawn = [_errors(table, measured, rounds) for rounds in draws]
    return [
        Compared(
            names[shape],
            phase,
            statistics.median(measured[shape][phase]),
            error,
            statistics.stdev(each[shape, phase] for each in drawn),
        )
        for (shape, phase), error in errors.items()
    ]


def _errors(
    table: Mapping[Stack, Mapping[Phase, Sequence[float]]],
    measured: Mapping[ModelShape, Mapping[Phase, Sequence[float]]],
    rounds: Sequence[int],
) -> dict[tuple[ModelShape, Phase], float]:
    """Relative error of every prediction, by these rounds alone."""

    def taken(seconds: Mapping[Phase, Sequence[float]]) -> dict[Phase, list[float]]:
        return {phase: [seconds[phase][number] for number in rounds] for phase in PHASES}

    times = block_times({stack: taken(seconds) for stack, seconds in table.items()})
    settings = SpeedSettings(1, PROMPT_TOKENS, NEW_TOKENS, len(rounds))
    depth = max(stack.depth for stack in table)
    latencies = LatencyTable("", "", "", {}, settings, depth, times)
    found = {}
    for shape, seconds in measured.items():
        for phase, values in taken(seconds).items():
            median = statistics.median(values)
            found[shape, phase] = (latencies.seconds(shape, phase) - median) / median
    return found


def shapes_of(dense: ModelShape) -> Mapping[ModelShape, str]:
    """Eight shapes: all layers alike and mixtures, some of widths that no table has; where every
    other layer has lost its attention; where every fourth layer is gone.
    """
    heads, channels = dense.layers[0].kv_heads, dense.layers[0].mlp_channels
    fewer, count = max(1, heads - 1), len(dense.layers)
    wanted = [
        [(heads, channels)],
        [(heads, channels * 3 // 4)],
        [(heads, channels // 2)],
        [(fewer, channels * 5 // 8 + 8)],
        [(heads, channels), (fewer, channels // 3), (heads, channels // 2 + 24)],
        [(heads, channels // 4), (heads, channels)],
        [(heads, channels), (0, channels)],
        [(heads, channels), (heads, channels), (heads, channels), (0, 0)],
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
