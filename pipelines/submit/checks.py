"""What the configuration of a submitted command says is wrong with its options.

These checks look at options alone. Files and devices are those of the cluster, and the job looks at
them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.export import ExportConfig
from pipelines.config.grid import Point, plain_grid, points_of
from pipelines.config.groups import URLS
from pipelines.config.latency import LatencyConfig
from pipelines.config.overrides import check_axes, composed, option_of
from pipelines.config.point_problems import PointProblems, of_all
from pipelines.config.prune import PruneConfig
from pipelines.config.recover import RecoverConfig
from pipelines.config.solve import SolveConfig
from pipelines.config.sweep import SweepConfig
from pruning.errors import InputError

_ELSEWHERE = "https://of.the.cluster"
"""In the place of a URL that is in the environment of the job."""
_THERE = "/of/the/cluster"
"""The same in a path, of which nothing but its form is looked at."""
_PATHS = ("path", "run", "shape", "output_dir", "data_dir", "latency")
"""Options that are one, by their last name."""
_VARIABLE = re.compile(r"\$\{oc\.env:([A-Za-z_][A-Za-z_0-9]*)\}")


def problems_of_options(command: str, raw: DictConfig, overrides: Sequence[str]) -> list[str]:
    """What is wrong with the options of a command that is to run elsewhere. A run that is resumed
    has its settings there; nothing is said of them, nor where a reference is known there alone.

    Args:
        raw: the composed configuration, inside of `pipelines.cli.launch.call`.
        overrides: of the command.
    """
    if raw.get("resume"):
        return []
    try:
        _CHECKS[command](raw, overrides)
    except InputError as error:
        return str(error).splitlines()
    except OmegaConfBaseException:  # such as a value that only the cluster has
        return []
    return []


def _of_points(raw: DictConfig, overrides: Sequence[str]) -> None:
    """As `pipelines.sweep`."""
    points, given = _points(raw, overrides)
    names, configs = [option_of(override) for override in given], list[PruneConfig]()
    problems = PointProblems(points)
    for point in points:
        try:
            config = _known(composed("sweep", [*given, *point.overrides]))
            configs.append(SweepConfig.point(config, list(point.settings), names))
        except InputError as error:
            problems.add(point, error)
    problems.add_unused([config.search for config in configs], names)
    problems.check()


def _of_solutions(raw: DictConfig, overrides: Sequence[str]) -> None:
    """As `pipelines.solve`."""
    if not plain_grid(raw.grid):
        SolveConfig.of(_known(raw))
        return
    points, given = _points(raw, overrides)
    of_all(
        points,
        lambda point: SolveConfig.of(_known(composed("solve", [*given, *point.overrides]))),
    )


def _points(raw: DictConfig, overrides: Sequence[str]) -> tuple[list[Point], list[str]]:
    """The points of a grid, and the overrides that they have in common."""
    grid = plain_grid(raw.grid)
    check_axes(grid, raw)
    return points_of(grid), [word for word in overrides if option_of(word) != "grid"]


def _known(raw: DictConfig) -> DictConfig:
    """With something in the place of what is in the environment of the job."""
    found = raw.copy()
    for name in URLS:
        group, _, option = name.partition(".")
        if group in found and OmegaConf.is_interpolation(found[group], option):
            found[group][option] = _ELSEWHERE
    for place, text in _texts(OmegaConf.to_container(found, resolve=False)):
        filled = _VARIABLE.sub(lambda match: match[0] if match[1] in os.environ else _THERE, text)
        if filled != text and place.rpartition(".")[2] in _PATHS:
            OmegaConf.update(found, place, filled)
    return found


def _texts(node: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a configuration, with its place."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict | list):
        parts = node.items() if isinstance(node, dict) else enumerate(node)
        for name, part in parts:
            yield from _texts(part, f"{path}.{name}" if path else str(name))


def _names(overrides: Sequence[str]) -> list[str]:
    return [option_of(override) for override in overrides]


_CHECKS: dict[str, Callable[[DictConfig, Sequence[str]], object]] = {
    "prune": lambda raw, overrides: PruneConfig.of_new(_known(raw), _names(overrides)),
    "sweep": _of_points,
    "solve": _of_solutions,
    "latency": lambda raw, _: LatencyConfig.of(_known(raw)),
    "recover": lambda raw, overrides: RecoverConfig.of(_known(raw), _names(overrides)),
    "evaluate": lambda raw, overrides: EvaluateConfig.of(_known(raw), _names(overrides)),
    "export": lambda raw, overrides: ExportConfig.of(_known(raw), _names(overrides)),
}
"""As each command makes them."""
