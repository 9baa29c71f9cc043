"""A grid of settings: from options with several values to points, each with its name and its
overrides.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from pipelines.config.overrides import CONF, asks_for_multirun, quoted
from pruning.errors import InputError

AXES = ("model", "calibration", "search", "experiment")
"""Groups whose options can be axes.

The others say where a sweep runs and what it writes, once for all points.
"""


MAX_POINTS = 1_000


@dataclass(frozen=True, slots=True)
class Point:
    """One point: `settings` are values by option."""

    name: str
    settings: Mapping[str, Any]

    @property
    def overrides(self) -> list[str]:
        """In Hydra's grammar; files of a group first, so that single options are on top of them."""
        ordered = sorted(self.settings.items(), key=lambda item: "." in item[0])
        return [f"{name}={value if '.' not in name else written(value)}" for name, value in ordered]


def as_grid(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the options of one value that were given a list taken
    together as `grid={OPTION:[...]}`.

    What cannot be parsed is left as it is: composing explains it.

    Raises:
        InputError: Hydra's own way to give several values, which would run the command once for
            each.
    """
    commas = [
        word
        for word in words
        if word.partition("=")[0].partition(".")[0] in AXES
        and re.fullmatch(r"[\w.]+=[^][{}()'\"]*,[^][{}()'\"]*", word)
    ]
    multirun = asks_for_multirun(words)
    if multirun or commas:
        given = "--multirun" if multirun else commas[0]
        name, _, values = (commas or ["search.target_ratio=0.07,0.10"])[0].partition("=")
        raise InputError(
            f"{given}: several values are a list here, {name}=[{values}]; --multirun is for "
            "multipruner prune"
        )
    if not any("=[" in word or word.startswith("grid=") for word in words):
        return list(words)
    with initialize_config_dir(str(CONF), version_base=None):
        plain = compose("prune")
    parser, axes, rest = OverridesParser.create(), [], []
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException:
            rest.append(word)
            continue
        if _is_axis(override, plain):
            axes.append(f"{override.key_or_group}:{word.partition('=')[2]}")
        else:
            rest.append(word)
    # A grid has no fields of its own, so that what goes into it is added to it.
    rest = [f"++{word}" if word.startswith("grid=") else word for word in rest]
    flags = next(
        (index for index, word in enumerate(rest) if word.startswith("-")), len(rest)
    )  # Hydra takes nothing behind them
    return [*rest[:flags], f"++grid={{{','.join(axes)}}}", *rest[flags:]] if axes else rest


def plain_grid(grid: Any) -> dict[str, Any]:
    """As Hydra composed it, in plain types."""
    plain = OmegaConf.to_container(grid, resolve=True)
    assert isinstance(plain, dict)
    return {str(name): values for name, values in plain.items()}


def points_of(grid: Mapping[str, Any]) -> list[Point]:
    """Every combination, the last option changing fastest.

    Raises:
        InputError: with every problem of the grid at once.
    """
    problems = (
        []
        if grid
        else [
            (
                "grid: empty; give an option several values, such as "
                "search.target_ratio=[0.07,0.10,0.15]"
            )
        ]
    )
    for name, values in grid.items():
        if name.partition(".")[0] not in AXES:
            problems.append(
                f"grid: {name} cannot differ from point to point; what can: "
                f"{', '.join(f'{group}.*' for group in AXES[:-1])}, and files of a group"
            )
        elif not isinstance(values, (list, tuple)) or not values:
            problems.append(
                f"grid: {name}: {values!r}; give a list of values"
                + ("" if isinstance(values, (list, tuple)) else f", such as [{values}]")
            )
        elif "." not in name and not all(isinstance(value, str) for value in values):
            problems.append(f"grid: {name}: {list(values)}; give names of files of conf/{name}")
        elif len({str(value) for value in values}) < len(values):
            problems.append(f"grid: {name}: {list(values)} has a value twice")
    if not problems and (count := math.prod(map(len, grid.values()))) > MAX_POINTS:
        sizes = " x ".join(f"{len(values):,} of {name}" for name, values in grid.items())
        problems.append(
            f"grid: {count:,} points ({sizes}); at most {MAX_POINTS:,}: give fewer values, or "
            "several commands"
        )
    if problems:
        raise InputError("\n".join(problems))
    combinations = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    names = [
        "_".join(_label(name, value) for name, value in settings.items())
        for settings in combinations
    ]
    return [
        Point(
            name
            if names.count(name) == 1
            else f"{name}_{hashlib.sha256(str(settings).encode()).hexdigest()[:6]}",
            settings,
        )
        for name, settings in zip(names, combinations, strict=True)
    ]


def _is_axis(override: Override, plain: DictConfig) -> bool:
    name, value = override.key_or_group, override.value()
    if not isinstance(value, list) or override.is_delete() or override.is_add():
        return False
    if "." not in name:
        return (
            name in AXES or (CONF / name).is_dir()
        )  # a list of files of another group is refused later, instead of the last one winning
    takes_list = OmegaConf.is_list(OmegaConf.select(plain, name))
    return not takes_list or bool(value and isinstance(value[0], list))


def _label(name: str, value: Any) -> str:
    """For the name of a folder: of files of a group their name alone, of paths the file's."""
    if isinstance(value, (list, tuple)):
        text = "-".join(_short(part) for part in value)
    elif isinstance(value, str) and name.startswith(("model.", "calibration.")):
        text = re.sub(r"\.[A-Za-z]+$", "", Path(value).name) or value  # Llama-3.1-8B has no suffix
    else:
        text = _short(value)
    text = re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.") or "empty"
    return text if "." not in name else f"{name.rpartition('.')[2]}_{text}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):  # one of calibration.sources
        name = value.get("name") or Path(str(value.get("path") or value.get("source", ""))).stem
        share = value.get("share", 1)
        return f"{name}-{share:g}" if isinstance(share, int | float) else f"{name}-{share}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def written(value: Any) -> str:
    """In Hydra's grammar."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(written(part) for part in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{written(part)}' for name, part in value.items())}}}"
    if isinstance(value, str):
        return quoted(value)
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)
