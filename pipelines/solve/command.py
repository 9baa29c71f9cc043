"""`multipruner solve`: the table of an ended allocation goes in, shapes for other targets come out.
Nothing is evaluated.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from pipelines.cli.commands import command_line
from pipelines.cli.console import log_to, show_result
from pipelines.cli.launch import freeze_gc
from pipelines.config.grid import Point, plain_grid, points_of
from pipelines.config.overrides import as_override, check_axes, composed, option_of
from pipelines.config.point_problems import of_all
from pipelines.config.solve import SolveConfig
from pipelines.config.target import load_in_words
from pipelines.runs.files import RUN, SHAPE, SOLUTION
from pipelines.runs.folder import RunFolder
from pipelines.solve.solution import Solved, SolvedRun, solved

_SEVERAL = {"kind": "solutions"}
"""Identity of a folder that holds the folders of solutions."""


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
    configs = of_all(
        points, lambda point: SolveConfig.of(composed("solve", [*given, *point.overrides]))
    )
    assert configs[0].run is not None
    with freeze_gc():  # counting parameters imports torch, unless they are known from before
        run = SolvedRun.read(configs[0].run, configs[0].memory, configs[0].latency)
    wanted = dict(zip((point.name for point in points), configs, strict=True))
    solutions = of_all(points, lambda point: solved(run, wanted[point.name]))
    found = {point.name: each for point, each in zip(points, solutions, strict=True)}
    with RunFolder(configs[0].output_dir) as folder:
        if grid:
            folder.claim(_SEVERAL)
            _each_in(folder, found, lambda own, each: own.check(each.identity()))
            _each_in(folder, found, lambda own, each: each.write(own))
        else:
            solutions[0].write(folder)
        show_result(
            _table(found),
            f"predictions are sums of what {run.saved.folder} measured; the word says how much "
            "they are worth",
            f"each has {SHAPE} and {SOLUTION} in {folder.path}{'/NAME' if grid else ''}",
            f"to measure one: {_command('evaluate', run, folder.path / next(iter(found)))}",
        )
    return [each.to_json() for each in found.values()]


def _each_in(
    folder: RunFolder,
    found: Mapping[str, Solved],
    do: Callable[[RunFolder, Solved], object],
) -> None:
    """One after the other, since each that is held is an open file. A folder that there was not,
    and that nothing was written into, goes again.
    """
    for name, each in found.items():
        path = folder.path / name
        is_new = not path.exists()
        try:
            with RunFolder(str(path)) as own:
                do(own, each)
        finally:
            if is_new and not (path / RUN).exists():
                shutil.rmtree(path, ignore_errors=True)


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
    shown.add_column("KL", no_wrap=True)
    for name, each in found.items():
        prediction, costs = each.prediction, each.run.costs
        score = prediction.score if prediction.measured is None else prediction.measured
        shown.add_row(
            name or ", ".join(f"{target} {given}" for target, (_, given) in each.targets.items()),
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
    memory = [f"memory: {load_in_words(asdict(first.run.load))}"] if "memory" in names else []
    base = "from the base: ratio of parameters less that of the shape measured around"
    shown.caption = "\n".join([base, *memory, *reasons])
    shown.caption_justify = "left"
    return shown
