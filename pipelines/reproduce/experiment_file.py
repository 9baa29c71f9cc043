"""An experiment written from a search that has ended: its settings, and its figures as what is
expected of the next one.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from pipelines.config import overrides
from pipelines.reproduce.divergence import removal_text
from pipelines.runs.files import EVALUATION, SUMMARY, read_json_if_there
from pipelines.runs.saved_run import SavedRun, read_saved_run
from pruning.errors import InputError
from pruning.models.find import find_checkpoint
from pruning.shape import Removal

_RESOLVED = {"search": ("mlp_group_channels", "head_group_channels"), "model": ("dtype",)}
"""Settings that the run resolved, if they were null or auto."""
_MEASURED = (
    "tasks",
    "num_fewshot",
    "limit",
    "data_dir",
    "texts",
    "sequence_length",
    "batch_size",
    "max_length",
)
_NOT_SIZES = (
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_name_or_path",
    "auto_map",
)


def record_experiment(run_folder: str, name: str) -> Path:
    """Writes `conf/experiment/NAME.yaml`.

    Raises:
        InputError: the run has not ended, or there is an experiment of that name.
    """
    if not re.fullmatch(r"[\w-]+(/[\w-]+)*", name):
        raise InputError(
            f"record_as: {name!r}; give a name of letters, digits, _ and -, such as mine/smollm2_10"
        )
    path = overrides.CONF / "experiment" / f"{name}.yaml"
    if path.exists():
        raise InputError(f"record_as: {path} is there already; give another name, or remove it")
    run = read_saved_run(run_folder, option="record", needs=(SUMMARY,))
    content = _settings(run) | {"expected": _expected(run)}
    text = yaml.safe_dump(
        content, sort_keys=False, width=100, default_flow_style=None, allow_unicode=True
    )
    command = f"# multipruner reproduce experiment={name} mode=search"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# @package _global_\n{command}\n{text}", encoding="utf-8")
    return path


def _settings(run: SavedRun) -> dict[str, Any]:
    groups = {
        group: OmegaConf.to_container(run.config[group])
        for group in ("model", "calibration", "search")
    }
    for group, names in _RESOLVED.items():
        settings = groups[group]
        assert isinstance(settings, dict)
        settings |= {
            name: run.record["identity"].get(f"{group}.{name}", settings[name]) for name in names
        }
    evaluation = _evaluation(run)
    return groups | (
        {"evaluation": {name: evaluation["settings"][name] for name in _MEASURED}}
        if evaluation
        else {}
    )


def _expected(run: SavedRun) -> dict[str, Any]:
    summary, evaluation, model = run.summary, _evaluation(run), run.config.model
    assert summary is not None
    ended = datetime.fromtimestamp(run.lines[-1]["timestamp"], UTC)
    checkpoint = find_checkpoint(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    sizes = {
        name: value
        for name, value in checkpoint.config().to_diff_dict().items()
        if name not in _NOT_SIZES
    }
    counts = summary["num_parameters"]
    return {
        "source": (
            f"a search that ended {ended:%Y-%m-%d}, {summary['num_evaluators']} "
            f"evaluators, {summary['dtype']}"
        ),
        "config": sizes,
        "dense": {"num_parameters": counts["dense"]}
        | _reference_metrics(evaluation["dense"] if evaluation else None),
        "pruned": {"num_parameters": counts["pruned"]} | _reference_metrics(evaluation),
        "shape": summary["shape"],
        "steps": [removal_text(Removal.from_json(line["removed"])) for line in run.lines],
        # Its figures have all their digits.
        "tolerance": {"perplexity_rounding": 0.0, "accuracy_rounding": 0.0, "ratio_rounding": 0.0},
    }


def _reference_metrics(measured: dict[str, Any] | None) -> dict[str, Any]:
    if measured is None:
        return {}
    tasks = {
        name: values.get("acc_norm", values.get("acc"))
        for name, values in measured["tasks"].items()
    }
    return {
        "perplexity": {
            name: value for name, value in measured["perplexity"].items() if value is not None
        },
        "accuracy": {name: value for name, value in tasks.items() if value is not None},
        "accuracy_average": measured["average"],
    }


def _evaluation(run: SavedRun) -> dict[str, Any] | None:
    """What was measured of the shape that the search came to."""
    found = read_json_if_there(run.folder / EVALUATION, option="record", fields=("shape",))
    return (
        found
        if found is not None and run.summary is not None and found["shape"] == run.summary["shape"]
        else None
    )
