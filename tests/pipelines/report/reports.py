"""Folders of searches that never ran, and the command that compares them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.report.data import ReportRun
from pipelines.report.folders import read_runs
from pruning.shape import ModelShape, Removal

LAYERS, HEADS, CHANNELS = 4, 2, 8
STAGE = {
    "attention": "block",
    "mlp": "block",
    "mlp_channels": "mlp_channels",
    "attention_heads": "attention_heads",
}

Step = tuple[str, Mapping[str, tuple[float, float | None]]]
"""What a step removed, and (NLL, standard error) of each candidate.

Removals are `attention:2`, `mlp:0`, `mlp_channels:1:6`.
"""


def a_removal(text: str) -> Removal:
    kind, layer, *left = text.split(":")
    return Removal(kind, int(layer), int(left[0]) if left else 0)  # type: ignore[arg-type]


def write_run(
    folder: Path,
    steps: Sequence[Step],
    *,
    model: str = "m",
    ended: bool = True,
    target: float = 0.5,
    text: str = "t",
    heldout: tuple[float, float] = (10.0, 12.0),
    sources: Mapping[str, tuple[float, float]] | None = None,
    settings: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
    fields: Sequence[str] = ("stderr", "margin_stderr"),
) -> Path:
    """A search of a model with four layers, two KV heads and eight channels each.

    Args:
        text: fingerprint of both calibration sets.
        heldout: perplexity, dense and pruned.
        sources: the same of each source of a mixture, whose text is called after it.
        summary: what else `summary.json` has.
        fields: of `stderr` and `margin_stderr`, those that the folder has; old ones have neither.
    """
    folder.mkdir(parents=True)
    shape, lines = ModelShape.dense(LAYERS, HEADS, CHANNELS), []
    for number, (removed, scores) in enumerate(steps, start=1):
        shape = shape.without(a_removal(removed))
        lines.append(_line(number, removed, scores, shape, fields))
    identity = {
        "model": model,
        "model.dtype": "float32",
        "calibration.block": text,
        "calibration.width": text,
        "calibration.batch_size": 4,
    }
    config = {
        "model": {"path": f"/no/{model}"},
        "search": {"target_ratio": target, "importance": "activation"},
        "tracking": {"uri": "sqlite:////no/mlflow.db"},
    }
    for name, value in (settings or {}).items():
        group, _, option = name.partition(".")
        config.setdefault(group, {})[option] = value
    (folder / "run.json").write_text(
        json.dumps({"identity": identity, "started": 1.8e9, "mlflow_run_id": "r"})
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "trajectory.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if ended:
        made = a_summary(lines, heldout, sources or {}) | dict(summary or {})
        (folder / "summary.json").write_text(json.dumps(made))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def _line(
    number: int,
    removed: str,
    scores: Mapping[str, tuple[float, float | None]],
    shape: ModelShape,
    fields: Sequence[str],
) -> dict[str, Any]:
    """What the journal says of a step."""
    removal, nll = a_removal(removed), scores[removed][0]
    rest = sorted((score, stderr) for name, (score, stderr) in scores.items() if name != removed)
    left = sum(layer.kv_heads + layer.mlp_channels for layer in shape.layers)
    line = {
        "step": number,
        "stage": STAGE[removal.kind],
        "removed": removal.to_json(),
        "nll": nll,
        "perplexity": math.exp(nll),
        "ratio": 1 - left / (LAYERS * (HEADS + CHANNELS)),
        "num_parameters": left,
        "flops_per_token": 2 * left,
        "margin": rest[0][0] - nll if rest else None,
        "margin_stderr": rest[0][1] if rest else None,
        "evaluations": number,
        "shape": shape.text,
        "candidates": [
            a_removal(name).to_json() | {"nll": score, "stderr": stderr}
            for name, (score, stderr) in scores.items()
        ],
        "seconds": 1.0,
        "timestamp": 1.8e9,
    }
    if "margin_stderr" not in fields:
        del line["margin_stderr"]
    for candidate in line["candidates"] if "stderr" not in fields else ():
        del candidate["stderr"]
    return line


def a_summary(
    lines: Sequence[Mapping[str, Any]],
    heldout: tuple[float, float],
    sources: Mapping[str, tuple[float, float]],
) -> dict[str, Any]:
    pair = {"dense": 40, "pruned": lines[-1]["num_parameters"]}
    return {
        "status": "target reached",
        "perplexity": {
            "block": {"dense": 9.0, "pruned": 11.0},
            "width": {"dense": 9.5, "pruned": 11.5},
            "heldout": dict(zip(("dense", "pruned"), heldout, strict=True)),
            **{
                f"heldout_{name}": dict(zip(("dense", "pruned"), values, strict=True))
                for name, values in sources.items()
            },
        },
        "num_parameters": pair,
        "flops_per_token": pair,
        "kv_cache_bytes_per_token": pair,
        "calibration": {"heldout": {"num_sequences": 4, "sequence_length": 8}}
        | {f"heldout_{name}": {"fingerprint": name} for name in sources},
        "evaluations": {"candidates": 7, "scored": 12, "reused": 3},
        "num_evaluators": 2,
        "faults": {"worker died": 1},
        "lost_evaluations": 4,
        "seconds": 75.0,
        "versions": {"torch": "2.0"},
        "git_revision": None,
    }


def heldout_nll(*pruned: float, dense: Sequence[float] = (2.0, 2.2, 2.4, 2.6)) -> dict[str, Any]:
    """What a summary has of held-out sequences, nats per token of each, with the perplexities."""
    found = {"dense": list(dense), "pruned": list(pruned)}
    perplexity = {role: math.exp(sum(nll) / len(nll)) for role, nll in found.items()}
    return {
        "nll_per_sequence": {"heldout": found},
        "perplexity": {"block": {"dense": 9.0, "pruned": 11.0}, "heldout": perplexity},
    }


def an_evaluation(ratio: float, perplexity: float, average: float) -> dict[str, Any]:
    """Of WikiText-2 and one task; the dense model has 20 and 0.6."""
    return {
        "ratio": ratio,
        "perplexity": {"wikitext2": perplexity},
        "tasks": {
            "piqa": {
                "acc": average,
                "acc_stderr": 0.01,
                "acc_norm": average,
                "acc_norm_stderr": 0.011,
                "num_documents": 100,
            }
        },
        "average": average,
        "dense": {
            "perplexity": {"wikitext2": 20.0},
            "tasks": {
                "piqa": {"acc": 0.6, "acc_stderr": 0.01, "acc_norm": 0.61, "acc_norm_stderr": 0.01}
            },
            "average": 0.6,
        },
        "settings": {"num_fewshot": None, "limit": None, "max_length": None, "dtype": "bfloat16"},
        "versions": {"lm_eval": "0.4.13"},
        "fingerprints": {"texts": {"wikitext2": "w"}},
    }


def figures(page: Path) -> dict[str, Any]:
    """The figures that a page carries, by the id of their element."""
    found = re.search(
        r'<script type="application/json" id="figures">(.*?)</script>', page.read_text(), re.DOTALL
    )
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


A1: Step = (
    "attention:1",
    {"attention:1": (2.0, 0.0), "attention:2": (2.1, 0.2), "mlp:3": (2.5, 0.1)},
)
"""Attention 1 goes, half a standard error better than attention 2."""


A2: Step = (
    "attention:2",
    {"attention:1": (2.3, 0.1), "attention:2": (2.2, 0.0), "mlp:3": (2.5, 0.1)},
)
"""Attention 2 goes, one standard error better than attention 1."""


M3: Step = ("mlp:3", {"mlp:3": (2.4, 0.0), "mlp:0": (2.9, 0.1)})


WIDTH: Step = (
    "mlp_channels:0:6",
    {"mlp_channels:0:6": (2.6, 0.0), "mlp_channels:1:6": (2.61, 0.02)},
)


HEAD: Step = (
    "attention_heads:0:1",
    {"attention_heads:0:1": (2.6, 0.0), "attention_heads:2:1": (2.61, 0.02)},
)


def pair(
    folder: Path, first: list[Step], second: list[Step], **changes: object
) -> tuple[ReportRun, ReportRun]:
    mine, theirs = read_runs(
        [str(write_run(folder / "one", first)), str(write_run(folder / "two", second, **changes))]
    )  # type: ignore[arg-type]
    return mine, theirs
