"""How much memory an export takes in the process that sorts, cuts and writes. Linux only."""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from experiments.benchmarks import workload
from experiments.benchmarks.report import Report
from pruning.costs.accounting import Accounting
from pruning.export.folder import Export, write_export
from pruning.importance.channel_order import channel_order
from pruning.models.checkpoint import Checkpoint
from pruning.models.loaded_model import LoadedModel
from pruning.shape import LayerShape, ModelShape

ALLOWANCE_BYTES = 500_000_000
"""Above the weights, the interpreter and its libraries included."""

SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 14,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 16_000,
    "max_position_embeddings": 2048,
}


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of the weights before and after, and the most that the process had resident."""

    weight_bytes: int
    written_bytes: int
    peak_bytes: int
    seconds: float


def run() -> Report:
    """Makes a random Llama of one gigabyte, and exports it in a fresh process with every second
    layer cut.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "experiments.benchmarks.export_memory", scratch]
        for step in ("make", "export"):
            output = subprocess.run(
                [*command, step],
                cwd=workload.REPOSITORY,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout
    found = Footprint(**json.loads(output.splitlines()[-1]))
    bound = found.weight_bytes + ALLOWANCE_BYTES
    rows = (
        ("dense weights", found.weight_bytes),
        ("written", found.written_bytes),
        ("peak of the process that exports", found.peak_bytes),
        ("bound: dense weights + 500 MB", bound),
    )
    return Report(
        "export_memory",
        "Memory of an export",
        {
            "model": "random Llama, "
            + ", ".join(f"{name} {value}" for name, value in SIZES.items()),
            "dtype": "float32",
        },
        ("what", "MB"),
        tuple((name, f"{value / 1e6:,.0f}") for name, value in rows),
        (
            "The peak is that of the whole process, the interpreter and its libraries included. "
            "The fresh process that opens the export begins when the "
            f"dense weights are gone. Sorting, writing and verifying took {found.seconds:.0f} s.",
        ),
        ()
        if found.peak_bytes <= bound
        else (f"the peak is {found.peak_bytes / 1e6:,.0f} MB, the bound {bound / 1e6:,.0f} MB",),
    )


def make(folder: Path) -> None:
    """The dense model."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES)).save_pretrained(folder)


def export(folder: Path, target: Path) -> Footprint:
    """Exports in this process, which should have done nothing before."""
    started = time.perf_counter()
    checkpoint = Checkpoint(folder)
    accounting = Accounting(checkpoint.config())
    geometry = accounting.geometry
    narrowed = LayerShape(geometry.kv_heads // 2, geometry.mlp_channels // 2)
    layers = [narrowed if index % 2 else full for index, full in enumerate(accounting.dense.layers)]
    layers[0], layers[2] = LayerShape(0, geometry.mlp_channels), LayerShape(geometry.kv_heads, 0)
    order = channel_order(LoadedModel.of(checkpoint.load(dtype="float32")), "l1")
    gc.collect()
    described = {"model": {"name": "random", "hub_id": None}}
    write_export(
        Export(
            checkpoint,
            accounting,
            ModelShape(tuple(layers)),
            order,
            "transformers",
            "auto",
            described,
            {},
        ),
        target,
    )
    weight_bytes, written_bytes = (
        sum(path.stat().st_size for path in place.glob("*.safetensors"))
        for place in (folder, target)
    )
    return Footprint(
        weight_bytes,
        written_bytes,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        time.perf_counter() - started,
    )


if __name__ == "__main__":
    scratch = Path(sys.argv[1])
    if sys.argv[2] == "make":
        make(scratch / "dense")
    else:
        print(json.dumps(asdict(export(scratch / "dense", scratch / "pruned"))))
