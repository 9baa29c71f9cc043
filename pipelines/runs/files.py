"""The names of all files that runs leave on disk, and the one way in which they are read back: a
damaged file is named, with what to do about it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from yaml import YAMLError

from pipelines.config.renamed import with_current_names
from pruning.errors import InputError
from pruning.shape import ModelShape

RUN = "run.json"
CONFIG = "config.yaml"
DENSE = "dense_model"
TRAJECTORY, TRAJECTORY_PICTURE = "trajectory.jsonl", "trajectory.png"
SHAPE, SHAPE_PICTURE, AUTHORS_CONFIG = "shape.json", "shape.png", "pruning_config.json"
SUMMARY, PRUNE_LOG = "summary.json", "prune.log"
CHANNEL_ORDER, BLOCK_INFLUENCE = "channel_order.safetensors", "block_influence.json"
ALLOCATION = "allocation.json"
SOLUTION = "solution.json"
LATENCY, LATENCY_PICTURE, LATENCY_LOG = "latency.json", "latency.png", "latency.log"
RECOVERY, ADAPTERS, RECOVER_LOG = "recovery.json", "adapters.safetensors", "recover.log"
STATUS = "status.json"
EVALUATION, EVALUATION_TABLE, EVALUATION_LOG = "evaluation.json", "evaluation.csv", "evaluate.log"
SWEEP, SWEEP_PICTURE, SWEEP_LOG = "sweep.json", "sweep.png", "sweep.log"
PLAN = "plan.json"
REPORT = "report.html"
VERDICT, REPRODUCE_LOG = "verdict.json", "reproduce.log"
LOCK = ".lock"

_SAME_COMMAND = "the command that wrote it, given again with the same output_dir, writes it anew"
_REMEDIES = {
    RUN: "restore it, or give another folder",
    CONFIG: _SAME_COMMAND,
    TRAJECTORY: "move it away and run the same command again: the scores are in the store",
    SUMMARY: _SAME_COMMAND,
    SWEEP: _SAME_COMMAND,
    EVALUATION: "remove it, or measure again with pipelines.evaluate",
    CHANNEL_ORDER: "remove it and run the same command again, which finds the order anew",
    BLOCK_INFLUENCE: "remove it and run the same command again, which measures it anew",
    ALLOCATION: "remove it and run the same command again: the scores are in the store",
    LATENCY: "restore it, or measure another with multipruner latency",
    RECOVERY: "remove the folder and recover again",
    STATUS: "a running search writes it anew every second",
}

_LINE_FIELDS = ("step", "stage", "removed", "nll", "perplexity", "ratio", "shape", "candidates")
"""What every line of a trajectory has, of whatever version."""

_T = TypeVar("_T")


def read_with(reader: Callable[[Path], _T], path: Path, *, option: str) -> _T:
    """What `reader` makes of a file.

    Args:
        option: that named the folder, for messages.

    Raises:
        InputError: the file cannot be read, or is not what it should be.
    """
    try:
        return reader(path)
    except (
        InputError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        SafetensorError,
    ) as error:
        raise damaged(path, error, option=option) from error


def damaged(path: Path, error: Exception, *, option: str) -> InputError:
    """The message about a file of a run that cannot be used: which one, why, and what to do."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
    elif isinstance(error, KeyError):
        reason = f"it has no {error.args[0]}"
    else:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
    remedy = _REMEDIES.get(path.name, "restore it, or remove it")
    return InputError(f"{option}: {path} is damaged: {reason}; {remedy}")


def read_json(path: Path, *, option: str, fields: Sequence[str] = ()) -> dict[str, Any]:
    """An object in a JSON file.

    Args:
        fields: that it must have.

    Raises:
        InputError: see `read_with`.
    """
    return read_with(lambda file: _object(file.read_bytes(), fields), path, option=option)


def read_json_if_there(
    path: Path, *, option: str, fields: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The same; None if there is no such file."""
    return read_json(path, option=option, fields=fields) if path.exists() else None


def read_trajectory(path: Path, *, option: str) -> list[dict[str, Any]]:
    """The lines of a trajectory, without a last one that a crash cut short.

    Raises:
        InputError: see `read_with`.
    """

    def lines(file: Path) -> list[dict[str, Any]]:
        whole, _, _ = file.read_bytes().rpartition(b"\n")
        found = [_object(line, _LINE_FIELDS) for line in whole.splitlines()]
        for line in found:
            ModelShape.parse(line["shape"])
        return found

    return read_with(lines, path, option=option)


def read_yaml(path: Path, *, option: str, fields: Sequence[str] = ()) -> DictConfig:
    """The mapping in a YAML file.

    Args:
        fields: options that it must have, such as `model.path`.

    Raises:
        InputError: see `read_with`.
    """

    def mapping(file: Path) -> DictConfig:
        try:
            found = OmegaConf.load(file)
            if not isinstance(found, DictConfig):
                raise TypeError("it holds a list, and should hold options by name")
            for name in fields:
                if OmegaConf.select(found, name) is None:
                    raise KeyError(name)
        except (YAMLError, OmegaConfBaseException) as error:
            raise ValueError(str(error)) from error
        return with_current_names(found)

    return read_with(mapping, path, option=option)


def _object(text: bytes, fields: Sequence[str]) -> dict[str, Any]:
    if not text.strip():
        raise ValueError("it is empty")
    found = json.loads(text)
    if not isinstance(found, Mapping):
        raise TypeError(f"it holds a {type(found).__name__}, and should hold an object")
    for name in fields:
        if name not in found:
            raise KeyError(name)
    return dict(found)
