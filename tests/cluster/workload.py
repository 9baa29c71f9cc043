"""A search of the right length for the machine that it runs on: a Llama with random weights, and
tokens.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from pruning.costs.accounting import Accounting
from pruning.search.greedy import GreedySearch
from pruning.search.settings import SearchSettings
from tests.conftest import tiny_config, tiny_model, tokens

_SIZES = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "attention_bias": False,
    "mlp_bias": False,
}
_TARGET_RATIO, _DISTRIBUTION = 0.25, (30, 50, 20)
_MLP_GROUP, _HEAD_GROUP = 64, 64
_LENGTH, _BATCH = 128, 2
_SUFFIX = 0.55
"""Work of a candidate against that of the whole model: on average it runs the upper half of the
layers, then the head.
"""


@dataclass(frozen=True, slots=True)
class Workload:
    """What to search: options of the command, and how long one core should be busy with it."""

    options: tuple[str, ...]
    seconds: float
    batches: int


def make_workload(folder: Path, seconds: float) -> Workload:
    """A search that keeps one quiet core busy for about so many seconds: the number of calibration
    batches is chosen for it.
    """
    config = tiny_config("llama", **_SIZES)
    model = tiny_model(config)
    model.save_pretrained(folder / "model")
    accounting = Accounting(config)
    groups = {"mlp_group_channels": _MLP_GROUP, "head_group_channels": _HEAD_GROUP}
    settings = SearchSettings.resolved(
        accounting.geometry, target_ratio=_TARGET_RATIO, distribution=_DISTRIBUTION, **groups
    )
    evaluation_s = (
        _SUFFIX * _forward_s(model) * GreedySearch(accounting, settings).expected_evaluations()
    )
    batches = max(4, round(seconds / evaluation_s))
    samples = batches * _BATCH
    save_file(
        {
            "input_ids": tokens(samples, _LENGTH, vocab=_SIZES["vocab_size"])
            .numpy()
            .astype(np.int64)
        },
        folder / "tokens.safetensors",
    )
    options = (
        f"model.path={folder / 'model'}",
        "model.dtype=float32",
        "calibration=tokens",
        f"calibration.path={folder / 'tokens.safetensors'}",
        f"calibration.num_block_samples={samples}",
        f"calibration.num_width_samples={samples}",
        "calibration.num_heldout_samples=0",
        f"calibration.sequence_length={_LENGTH}",
        f"calibration.batch_size={_BATCH}",
        f"search.target_ratio={_TARGET_RATIO}",
        f"search.distribution=[{','.join(map(str, _DISTRIBUTION))}]",
        f"search.mlp_group_channels={_MLP_GROUP}",
        f"search.head_group_channels={_HEAD_GROUP}",
    )
    return Workload(options, evaluation_s * batches, batches)


def _forward_s(model: torch.nn.Module) -> float:
    """One batch on one thread.

    Time of the processor, so that others who use it too do not count.
    """
    batch = tokens(_BATCH, _LENGTH, vocab=_SIZES["vocab_size"])
    measured = []
    with torch.inference_mode():
        for _ in range(6):
            started = time.thread_time()
            model(batch)
            measured.append(time.thread_time() - started)
    return min(measured)
