"""What a submitted command will take, as far as it can be known here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.cli.console import console, print_line
from pipelines.cli.launch import call
from pipelines.config.grid import as_grid
from pipelines.config.options import options_of
from pipelines.config.overrides import option_of
from pipelines.plan.command import planned
from pipelines.plan.tables import plan_table
from pipelines.submit.request import PLANNED, Request
from pruning.errors import InputError, first_line
from pruning.models.find import configured_folder

_ONE = ("recover", "latency")
"""Commands of one process."""

_ELSEWHERE = ("output_dir", "resume", "accept_other_arithmetic")
"""Options that a plan has, too, but that are about the folder on the cluster; `store` and
`tracking` are as well.
"""


def show_plan(request: Request) -> None:
    """Steps, evaluations, time and memory of a search; of other commands nothing is known.

    Raises:
        InputError: the settings do not fit the model, or no path reaches the target.
    """
    if request.command not in PLANNED or request.config.get("resume"):
        return
    found = call("plan", lambda: _planned, _words_of_plan(request), as_grid)
    if isinstance(found, str):
        print_line(f"no plan, since {found}")
    else:
        console.print(plan_table(found))


def evaluators_in_words(request: Request) -> str:
    """How many evaluators there will be, and what each gets; "" for a command without any."""
    cluster: Any = OmegaConf.select(request.config, "cluster")
    if cluster is None or cluster.kind == "inline":
        return ""
    count = 1 if request.command in _ONE else cluster.num_evaluators
    many = f"{count} evaluator{'s' if count > 1 else ''}" if count else "as many as fit"
    gpus = cluster.num_gpus_per_evaluator
    parts = [] if gpus is None else [f"{gpus} GPU"]
    return f"{many}, {' and '.join([*parts, f'{cluster.num_cpus_per_evaluator} CPU'])} each"


def _words_of_plan(request: Request) -> list[str]:
    known = {option.name for option in options_of("plan")}
    only = {option.name for option in options_of(request.command)} - known
    words = [
        word
        for word in (*request.words, *request.for_plan)
        if option_of(word) not in (*_ELSEWHERE, *only)
        and option_of(word).partition(".")[0] not in ("store", "tracking")
    ]
    return [*words, "measure_rate=false"]  # of another machine


def _planned(raw: DictConfig, overrides: Sequence[str]) -> Mapping[str, Any] | str:
    """The plan, or why there is none: model, table and variables may be on the cluster alone."""
    try:
        return _of_what_is_here(raw, overrides)
    except OmegaConfBaseException as error:
        return f"an option is known on the cluster alone: {first_line(error)}"


def _of_what_is_here(raw: DictConfig, overrides: Sequence[str]) -> Mapping[str, Any] | str:
    paths = raw.grid.get("model.path", [raw.model.path])
    try:
        for path in paths:
            configured_folder(path, raw.model.revision)
    except InputError as error:
        return f"the model is not here: {first_line(error)}"
    for table in raw.grid.get("latency", [raw.get("latency")]):
        if table and not Path(table).expanduser().exists():
            return f"the table is not here: latency: {table}"
    return planned(raw, overrides)
