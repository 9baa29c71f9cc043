"""How much memory an evaluator takes above its model while it scores a block step.

Linux only: the kernel keeps the peak.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from experiments.benchmarks import workload
from experiments.benchmarks.report import Report
from pruning.calibration.token_sets import Tokens
from pruning.importance.channel_order import ChannelOrder
from pruning.models.geometry import Geometry
from pruning.shape import Removal
from workers.evaluators.shapes import Evaluator
from workers.tasks import EvaluatorSpec, ScoreResult, ScoreTask

NUM_SEQUENCES, SEQUENCE_LENGTH = 2, 2048
BOUND_BYTES = 600_000_000


@dataclass(frozen=True, slots=True)
class Footprint:
    """Resident bytes of one process that scores a step, and its figures."""

    model_bytes: int
    loaded_bytes: int
    sorted_bytes: int
    peak_bytes: int
    num_candidates: int
    seconds: float

    @property
    def above_bytes(self) -> int:
        return self.peak_bytes - self.loaded_bytes


def run(*, num_candidates: int = 7) -> Report:
    """Measures in a fresh process, so that peaks of other work do not count."""
    workload.checkpoint()  # converted here on first use, not in the process that is measured
    command = [sys.executable, "-m", "experiments.benchmarks.memory", str(num_candidates)]
    output = subprocess.run(
        command, cwd=workload.REPOSITORY, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    found = Footprint(**json.loads(output.splitlines()[-1]))
    rows = (
        ("model weights", found.model_bytes),
        ("resident after load", found.loaded_bytes),
        ("resident after sorting", found.sorted_bytes),
        ("peak", found.peak_bytes),
        ("peak above load", found.above_bytes),
        ("bound", BOUND_BYTES),
    )
    return Report(
        "memory",
        "Memory of one evaluator over a block step",
        {
            "model": workload.MODEL,
            "dtype, threads": "float32, 1",
            "batch": f"{NUM_SEQUENCES} x {SEQUENCE_LENGTH:,} tokens",
        },
        ("what", "MB"),
        tuple((name, f"{value / 1e6:,.0f}") for name, value in rows),
        (
            f"{found.num_candidates} candidates were scored in {found.seconds:.0f} s: attention "
            "and MLP of the first, the middle and the last layer, and a "
            "narrowed MLP in the first, come first.",
            (
                "The peak does not depend on how many there are: they run one after the other on "
                "one "
                "kept prefix, and the first layer's have the longest suffix."
            ),
        ),
        ()
        if found.above_bytes <= BOUND_BYTES
        else (
            f"{found.above_bytes / 1e6:,.0f} MB above load, the bound is "
            f"{BOUND_BYTES / 1e6:,.0f} MB",
        ),
    )


def measure(num_candidates: int) -> Footprint:
    """Scores that many candidates in this process, which should have done nothing before."""
    checkpoint = workload.checkpoint()
    _, tokens = workload.calibration(checkpoint, NUM_SEQUENCES, SEQUENCE_LENGTH)
    sets: dict[str, Tokens] = {"block": tokens.input_ids, "width": tokens.input_ids}
    evaluator = Evaluator(EvaluatorSpec(checkpoint, "float32", sets, NUM_SEQUENCES))
    loaded_bytes = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # from here on the kernel keeps a new peak
    order = ChannelOrder.as_stored(evaluator.dense.geometry)
    evaluator.set_order(order)
    sorted_bytes = psutil.Process().memory_info().rss
    candidates = block_removals(evaluator.dense.geometry)[:num_candidates]
    result = evaluator.run(
        ScoreTask("block", 0, evaluator.dense.geometry.dense.text, candidates, order.fingerprint)
    )
    assert isinstance(result, ScoreResult)
    model_bytes = sum(parameter.nbytes for parameter in evaluator.dense.model.parameters())
    return Footprint(
        model_bytes, loaded_bytes, sorted_bytes, _peak_bytes(), len(candidates), result.seconds
    )


def block_removals(geometry: Geometry) -> tuple[Removal, ...]:
    """All of a block step and one narrowed MLP, those first that could differ in memory: both ends
    and the middle.
    """
    ends = [0, geometry.num_layers // 2, geometry.num_layers - 1]
    layers = [*ends, *(index for index in range(geometry.num_layers) if index not in ends)]
    removals = [Removal(kind, layer, 0) for layer in layers for kind in ("attention", "mlp")]
    removals.insert(2 * len(ends), Removal("mlp_channels", 0, geometry.mlp_channels * 7 // 8))
    return tuple(removals)


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    print(json.dumps(asdict(measure(int(sys.argv[1])))))
