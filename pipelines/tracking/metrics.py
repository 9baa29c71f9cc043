"""Every name in MLflow: metrics, parameters, tags and datasets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pruning.scoring.score import perplexity
from pruning.shape import ModelShape

Metrics = dict[str, float | int | None]
"""By name; None is not sent."""

RATIO = "prune/ratio"
PERPLEXITY = "prune/perplexity"
SECONDS = "prune/seconds"
RESULT_RATIO = "result/ratio"
PARENT = "mlflow.parentRunId"
DATASET_CONTEXT = "mlflow.data.context"
MODEL_VERSIONS = "mlflow.modelVersions"
NOTE = "mlflow.note.content"
"""What the page of a run says of it."""
SHARED_VIEW = "mlflow.sharedViewState"
HELDOUT = "result/heldout_perplexity"
REMOVED_LAYER = "prune/removed_layer"
LAYERS = {"kv_heads": "layer/attention", "mlp_channels": "layer/mlp"}
"""What remains of each layer, by what is counted there; the step is the layer."""
TIMES = {
    "block": "time/blocks",
    "mlp_channels": "time/mlp_channels",
    "attention_heads": "time/attention_heads",
    "other": "time/other",
}
"""Seconds of a search, by the stage of its steps."""
COLUMNS = {
    "metrics": (RESULT_RATIO, HELDOUT, f"{HELDOUT}_dense"),
    "params": ("search.target_ratio", "search.distribution", "search.importance"),
}
"""What compares runs in a table."""

_OF_A_STEP = (
    "perplexity",
    "nll",
    "ratio",
    "num_parameters",
    "flops_per_token",
    "margin",
    "seconds",
    "evaluations",
)


def step_metrics(line: Mapping[str, Any]) -> Metrics:
    """One line of a trajectory, in the section `prune`."""
    found = {f"prune/{name}": line[name] for name in _OF_A_STEP}
    found |= {f"prune/saved_{name}": ratio for name, ratio in line.get("saved", {}).items()}
    # Trajectories from before it was recorded lack the standard error of the margin.
    if "unscored" in line:
        found["prune/num_unscored"] = len(line["unscored"])
    return found | {
        "prune/num_candidates": len(line["candidates"]),
        "prune/margin_stderr": line.get("margin_stderr"),
        REMOVED_LAYER: line["removed"]["layer"],
    }


def layer_metrics(shape: ModelShape, dense: ModelShape) -> list[Metrics]:
    """What remains of each layer, in percent; the index is the step that it is sent as."""
    return [
        {
            name: 100 * getattr(here, unit) / getattr(there, unit)
            for unit, name in LAYERS.items()
            if getattr(there, unit)
        }
        for here, there in zip(shape.layers, dense.layers, strict=True)
    ]


def time_metrics(lines: Sequence[Mapping[str, Any]], seconds: float | None) -> Metrics:
    """Where the time of a search went.

    Args:
        lines: of the whole trajectory.
        seconds: of the process that took all of them; what no step took is something else. None:
            several did, so that this is not known.
    """
    found = {
        name: sum(line["seconds"] for line in lines if line["stage"] == stage)
        for stage, name in TIMES.items()
        if stage != "other"
    }
    if seconds is None:
        return found
    return found | {TIMES["other"]: max(0.0, seconds - sum(found.values()))}


def dense_metrics(
    *, nll: float, perplexity: float | None, num_parameters: int, flops_per_token: int | None
) -> Metrics:
    """The dense model, which is step 0.

    Args:
        nll: on the calibration set of blocks, nats per token.
    """
    return {
        PERPLEXITY: perplexity,
        "prune/nll": nll,
        RATIO: 0.0,
        "prune/num_parameters": num_parameters,
        "prune/flops_per_token": flops_per_token,
    }


def result_metrics(summary: Mapping[str, Any]) -> Metrics:
    """What a search came to, in the section `result`.

    Args:
        summary: what `summary.json` says.
    """
    perplexities = {
        f"result/{name}_perplexity{suffix}": pair[side]
        for name, pair in summary["perplexity"].items()
        for side, suffix in (("pruned", ""), ("dense", "_dense"))
    }
    sizes = {
        f"result/{name}": summary[name]["pruned"]
        for name in ("num_parameters", "flops_per_token", "kv_cache_bytes_per_token")
    }
    saved = {
        f"result/saved_{name}": cost["ratio"] for name, cost in summary.get("costs", {}).items()
    }
    return perplexities | sizes | saved | {RESULT_RATIO: summary["ratio"]}


def metrics_of_set(metrics: Metrics, name: str) -> Metrics:
    """Those of a search's result that were measured on one calibration set."""
    wanted = f"result/{name}_perplexity"
    return {each: value for each, value in metrics.items() if each in (wanted, f"{wanted}_dense")}


def metrics_of_text(metrics: Metrics, name: str) -> Metrics:
    """Those of an evaluation that were measured on one text."""
    wanted = [f"{section}/{name}/token_perplexity" for section in ("eval", "eval_dense")]
    return {each: value for each, value in metrics.items() if each in wanted}


def evaluation_metrics(report: Mapping[str, Any]) -> Metrics:
    """`eval/TASK/METRIC` and `eval/TEXT/token_perplexity`; the dense model's in `eval_dense/`, if
    there is a pruned one.

    Args:
        report: what `evaluation.json` says.
    """
    found = _quality("eval", report)
    if report["shape"] is not None and report["dense"] is not None:
        found |= _quality("eval_dense", report["dense"])
    sections = [("", report["cost"] or {})]
    sections += [(f"/{engine}", each) for engine, each in (report.get("engines") or {}).items()]
    for section, values in (
        each
        for suffix, cost in sections
        for each in (
            (f"eval_cost{suffix}", cost.get("pruned") or cost.get("dense")),
            (f"eval_cost_ratio{suffix}", cost.get("ratio")),
        )
    ):
        for name, value in (values or {}).items():
            number = value["median"] if isinstance(value, Mapping) else value
            if isinstance(number, (int, float)):
                found[f"{section}/{name}"] = float(number)
    return {
        name: value for name, value in found.items() if value is not None and math.isfinite(value)
    }


def _quality(section: str, measured: Mapping[str, Any]) -> Metrics:
    found = {
        f"{section}/{name}/token_perplexity": value
        for name, value in measured["perplexity"].items()
    }
    for name, values in measured["tasks"].items():
        found |= {
            f"{section}/{name}/{metric.replace(',', ':')}": value
            for metric, value in values.items()
        }
    return found | {f"{section}/average": measured["average"]}


def sweep_metrics(row: Mapping[str, Any]) -> Metrics:
    """One point as a step of the sweep's own MLflow run.

    Args:
        row: of `points` in `sweep.json`.
    """
    return {"sweep/ratio": row["ratio"]} | {
        f"sweep/{name}": value for name, value in row["values"].items()
    }


def search_params(
    options: Mapping[str, Any], identity: Mapping[str, Any], output_dir: str
) -> dict[str, Any]:
    """Every option, and under `resolved.` what the search made of those that decide its result.

    Args:
        options: by group, then name, those of `search.target` by another.
    """
    given = {
        f"{group}.{name}": value
        for group, fields in options.items()
        if isinstance(fields, Mapping)
        for name, value in fields.items()
        if not isinstance(value, Mapping)
    }
    target = options.get("search", {}).get("target", {})
    given |= {f"search.target.{name}": value for name, value in target.items() if value is not None}
    resolved = {f"resolved.{name}": value for name, value in identity.items()}
    return given | resolved | {"output_dir": output_dir}


def search_tags(
    *,
    model: str,
    model_type: str,
    calibration: Mapping[str, str],
    versions: Mapping[str, str],
    revision: str | None,
) -> dict[str, str]:
    """What a search was made with.

    Args:
        model: fingerprint of the checkpoint.
        calibration: fingerprint of each calibration set.
        revision: the commit of this program.
    """
    found = _versions(versions) | {"model.fingerprint": model, "model.type": model_type}
    found |= {f"calibration.{name}.fingerprint": value for name, value in calibration.items()}
    found |= _source("pipelines.prune")
    return found | ({"mlflow.source.git.commit": revision} if revision else {})


def evaluation_params(
    settings: Mapping[str, Any], *, model: str, source: str, shape: str | None
) -> dict[str, Any]:
    """Of an evaluation that has an MLflow run of its own."""
    found = {f"evaluation.{name}": value for name, value in settings.items()}
    return found | {"model": model, "source": source, "shape": shape}


def evaluation_tags(model: str, *, of_search: bool) -> dict[str, str]:
    """What was measured.

    Args:
        model: its fingerprint.
        of_search: the MLflow run is that of the search, which says itself where it is from.
    """
    found = {"evaluation.model.fingerprint": model}
    return found if of_search else found | _source("pipelines.evaluate")


def recovery_metrics(line: Mapping[str, Any]) -> Metrics:
    """One line of `recovery.jsonl`, in the section `recover`."""
    names = ("loss", "grad_norm", "learning_rate", "heldout_nll", "dense_nll", "seconds")
    nll = line["heldout_nll"]
    return {f"recover/{name}": line.get(name) for name in names} | {
        "recover/heldout_perplexity": None if nll is None else perplexity(nll)
    }


def recovered_metrics(found: Mapping[str, Any]) -> Metrics:
    """What a recovery came to, beside the results of searches.

    Args:
        found: what `recovery.json` says.
    """
    perplexities = found["heldout_perplexity"]
    return {
        HELDOUT: perplexities["recovered"],
        f"{HELDOUT}_dense": perplexities["dense"],
        RESULT_RATIO: found["ratio"],
    }


def recovery_params(identity: Mapping[str, Any], source: Mapping[str, str]) -> dict[str, Any]:
    """What decides a recovery.

    Args:
        source: the folder of the search, or the shape file, by what it is called.
    """
    return {**identity, **source}


def recovery_tags(model: str, *, parent: str | None, versions: Mapping[str, str]) -> dict[str, str]:
    """What a recovery was made with.

    Args:
        model: fingerprint of the dense model.
        parent: the MLflow run of its search, if it has one.
    """
    found = _versions(versions) | {"model.fingerprint": model} | _source("pipelines.recover")
    return found | ({PARENT: parent} if parent else {})


def sweep_params(grid: Mapping[str, Any], output_dir: str) -> dict[str, Any]:
    """The values of every option of the grid."""
    return {f"grid.{name}": values for name, values in grid.items()} | {"output_dir": output_dir}


def sweep_tags(versions: Mapping[str, str]) -> dict[str, str]:
    """What a sweep was made with."""
    return _versions(versions) | _source("pipelines.sweep")


def _versions(versions: Mapping[str, str]) -> dict[str, str]:
    return {f"version.{name}": version for name, version in versions.items()}


def _source(command: str) -> dict[str, str]:
    return {"mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
