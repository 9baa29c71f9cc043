"""`multipruner solve`: the table of an ended allocation goes in, shapes for other targets come out.
Nothing is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig
from rich.table import Table

from pipelines.cli.commands import command_line
from pipelines.cli.console import log_to, show_result
from pipelines.cli.launch import freeze_gc
from pipelines.config.grid import Point, plain_grid, points_of
from pipelines.config.overrides import as_override, check_axes, composed, option_of
from pipelines.config.solve import SolveConfig
from pipelines.runs.files import SHAPE, SOLUTION
from pipelines.runs.folder import RunFolder
from pipelines.solve.solution import Solved, SolvedRun, solved
from pruning.errors import InputError

_SEVERAL = {"kind": "solutions"}
"""Identity of a folder that holds the folders of solutions."""

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


def solve(raw: DictConfig, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Solves for every combination of targets and constraints; returns what each solution.json
    says.

    Raises:
        InputError: with what is wrong with any of them, before anything is written.
    """
    log_to(None)
    grid = plain_grid(raw.grid)
    points = points_of(grid) if grid else [Point("", {})]
    given = [override for override in overrides if option_of(override) != "grid"]
    check_axes(grid, raw)
    configs = _all(
        lambda point: SolveConfig.of(composed("solve", [*given, *point.overrides])), points
    )
    assert configs[0].run is not None
    with freeze_gc():  # counting parameters imports torch, unless they are known from before
        run = SolvedRun.read(configs[0].run, configs[0].latency)
    solutions = _all(lambda config: solved(run, config), configs)
    found = {point.name: each for point, each in zip(points, solutions, strict=True)}
    with RunFolder(configs[0].output_dir) as folder, ExitStack() as held:
        folders = [folder]
        if grid:
            folder.claim(_SEVERAL)
            folders = [held.enter_context(RunFolder(str(folder.path / name))) for name in found]
        for own, each in zip(folders, solutions, strict=True):
            own.check(each.identity())
        for own, each in zip(folders, solutions, strict=True):
            each.write(own)
        show_result(
            _table(found),
            f"predictions are sums of what {run.saved.folder} measured; the word says how much "
            "they are worth",
            f"each has {SHAPE} and {SOLUTION} in {folder.path}{'/NAME' if grid else ''}",
            f"to measure one: {_command('evaluate', run, folder.path / next(iter(found)))}",
        )
    return [each.to_json() for each in found.values()]


def _all(make: Callable[[_Given], _Made], given: Sequence[_Given]) -> list[_Made]:
    """What is made of each.

    Raises:
        InputError: with what is wrong with any of them, each said once.
    """
    made: list[_Made] = []
    problems: dict[str, None] = {}
    for each in given:
        try:
            made.append(make(each))
        except InputError as error:
            problems |= dict.fromkeys(str(error).splitlines())
    if problems:
        raise InputError("\n".join(problems))
    return made


def _command(name: str, run: SolvedRun, folder: Path) -> str:
    """What to type to go on with a solution."""
    model = run.saved.config.model
    words = [as_override("shape", folder / SHAPE), as_override("model.path", model.path)]
    if model.revision is not None:
        words.append(as_override("model.revision", model.revision))
    if model.trust_remote_code:
        words.append("model.trust_remote_code=true")
    return command_line(name, *words)


def _table(found: dict[str, Solved]) -> Table:
    first = next(iter(found.values()))
    shown = Table(
        title=f"{first.run.saved.model_name}: ratios of what goes, KL from the dense model in nats "
        "per token",
        title_justify="left",
    )
    names = list(first.run.costs)
    shown.add_column("solution")
    for name in (*(name.replace("_", " ") for name in names), "from the base", "blocks changed"):
        shown.add_column(name, justify="right")
    shown.add_column("KL")
    for name, each in found.items():
        prediction, costs = each.prediction, each.run.costs
        score = prediction.score if prediction.measured is None else prediction.measured
        shown.add_row(
            name or ", ".join(f"{target} {ratio:g}" for target, (_, ratio) in each.targets.items()),
            *(f"{costs[cost].ratio(each.shape):.4f}" for cost in names),
            f"{prediction.distance['parameters']:+.4f}",
            str(prediction.num_changed),
            f"{score:.4f} ({prediction.kind})",
        )
    reasons = [
        f"{name or 'extrapolation'}: {'; '.join(each.prediction.reasons)}"
        for name, each in found.items()
        if each.prediction.kind == "extrapolation"
    ]
    shown.caption = "\n".join(
        ["from the base: ratio of parameters less that of the shape measured around", *reasons]
    )
    shown.caption_justify = "left"
    return shown
