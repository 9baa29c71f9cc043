"""A whole search at the size of Llama-2-7B on the GPU of this machine: what `pipelines.plan` says of it beside what it took, and what the result costs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from experiments.benchmarks.prefix_reuse import llama_2_7b
from experiments.benchmarks.report import Report
from experiments.benchmarks.subject import REPOSITORY
from pruning.errors import InputError

EXPERIMENT = "multipruner/llama2_7b_22"
SEQUENCE_LENGTH = 2048
_STAGES = {"block": "blocks", "mlp_channels": "MLP channels", "attention_heads": "attention heads"}


def run(*, num_sequences: int = 16) -> Report:
    """Plans and searches, with weights and tokens by lot: they decide what goes, not what it costs.

    Args:
        num_sequences: of 2,048 tokens, that score a block step; half of them a width step. As published: 16.

    Raises:
        InputError: torch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise InputError("whole_search: torch sees no CUDA device here; the model takes 13.5 GB of one's memory")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_model(folder / "model")
        save_tokens(folder / "tokens.safetensors", num_sequences)
        words = [
            f"experiment={EXPERIMENT}",
            f"model.path={folder / 'model'}",
            "calibration=tokens",
            f"calibration.path={folder / 'tokens.safetensors'}",
            f"calibration.num_block_samples={num_sequences}",
            f"calibration.num_width_samples={num_sequences // 2}",
            "calibration.num_heldout_samples=0",
            "search.importance=activation",
            "cluster.num_evaluators=1",
            f"store.url=sqlite:///{folder}/scores.db",
            f"tracking.uri=sqlite:///{folder}/mlflow.db",
        ]
        with _peak_of_gpu() as peak:
            started = time.perf_counter()
            _command("prune", *words, f"output_dir={folder / 'run'}")
            seconds = time.perf_counter() - started
        summary = json.loads((folder / "run" / "summary.json").read_text())
        _command("plan", *words, "cluster.num_gpus=1", f"tflops_per_evaluator={summary['taken']['tflops_per_evaluator']}", f"output_dir={folder / 'plan'}")
        plan = json.loads((folder / "plan" / "plan.json").read_text())
        _command(
            "evaluate", f"run={folder / 'run'}", "evaluation.tasks=[]", "evaluation.cost_prompt_tokens=1024", "evaluation.cost_new_tokens=64",
            "evaluation.cost_rounds=4", f"store.url=sqlite:///{folder}/scores.db",
        )  # fmt: skip
        cost = json.loads((folder / "run" / "evaluation.json").read_text())["cost"]
    return _report(num_sequences, plan, summary, peak[0], seconds, cost)


def save_model(folder: Path) -> None:
    """Weights by lot in bfloat16."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(llama_2_7b(), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()


def save_tokens(path: Path, num_sequences: int) -> None:
    """Token ids by lot."""
    save_file({"input_ids": np.random.default_rng(0).integers(3, 32_000, (num_sequences, SEQUENCE_LENGTH), dtype=np.int64)}, path)


def _report(num_sequences: int, plan: dict[str, Any], summary: dict[str, Any], peak_bytes: int, seconds: float, cost: dict[str, Any]) -> Report:
    taken = summary["taken"]
    rows = [
        *((f"{label}: steps", _range(plan["steps"][stage]), str(taken["steps"][stage])) for stage, label in _STAGES.items()),
        *((f"{label}: evaluations", _range(plan["evaluations"][stage]), str(taken["evaluations"][stage])) for stage, label in _STAGES.items()),
        ("10^15 FLOPs", f"{plan['flops'] / 1e15:.1f}", f"{taken['flops'] / 1e15:.1f}"),
        ("GB of the GPU, peak", f"{plan['peak_bytes_per_evaluator'] / 1e9:.1f}", f"{peak_bytes / 1e9:.1f}"),
        ("minutes", f"{plan['hours'] * 60:.1f}", f"{summary['seconds'] / 60:.1f}"),
    ]
    outside = [
        f"{label}: {taken['evaluations'][stage]} evaluations, planned {_range(plan['evaluations'][stage])}"
        for stage, label in _STAGES.items()
        if not plan["evaluations"][stage]["min"] <= taken["evaluations"][stage] <= plan["evaluations"][stage]["max"]
    ]
    ratios = {name: cost["ratio"][name] for name in ("num_parameters", "flops_per_token", "kv_cache_bytes", "prefill_tokens_per_s", "decode_tokens_per_s")}
    return Report(
        "whole_search",
        "A whole search at the size of Llama-2-7B, planned and taken",
        {
            "experiment": f"{EXPERIMENT}, importance activation, weights and tokens by lot",
            "calibration": f"{num_sequences} sequences of {SEQUENCE_LENGTH:,} tokens for blocks, {num_sequences // 2} for widths, 2 at a time",
            "GPU": torch.cuda.get_device_name(),
            "dtype": str(summary["dtype"]),
        },
        ("what", "planned", "taken"),
        tuple(rows),
        (
            f"{taken['tflops_per_evaluator']:.0f} TFLOP/s over the search, which the planned minutes assume. The command took {seconds / 60:.1f} minutes with "
            f"start and end. Batches scored in halves for want of memory: {summary['halved_tasks']}.",
            f"Pruned / dense, at batch 1 and 1,024 + 64 tokens: {'; '.join(f'{name} {_ratio(value)}' for name, value in ratios.items())}.",
        ),
        tuple(outside),
    )


def _range(bounds: dict[str, int]) -> str:
    return f"{bounds['min']:,} to {bounds['max']:,}"


def _ratio(value: Any) -> str:
    return f"{value['median']:.3f} ({value['lowest']:.3f} to {value['highest']:.3f})" if isinstance(value, dict) else f"{value:.3f}"


def _command(job: str, *words: str) -> None:
    """Runs a command of the product as a user does."""
    subprocess.run([sys.executable, "-m", f"pipelines.{job}", *words], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def _peak_of_gpu() -> Iterator[list[int]]:
    """The most bytes of the first GPU in use, by whomever, above those at the start; looked at every tenth of a second."""

    def used() -> int:
        free, total = torch.cuda.mem_get_info(0)
        return total - free

    before, peak, done = used(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak[0] = max(peak[0], used() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
