"""A command that is to run on a cluster: whether it can, checked where it is given."""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from omegaconf import DictConfig, OmegaConf
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from pipelines.cli.commands import COMMANDS, command_line
from pipelines.cli.launch import call
from pipelines.config.grid import as_grid
from pipelines.config.groups import URLS
from pipelines.config.options import options_of
from pipelines.config.overrides import option_of
from pipelines.config.redaction import masked_url, without_secrets
from pipelines.submit.checks import problems_of_options
from pruning.errors import InputError

SUBMITTED: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "prune": list,
    "sweep": as_grid,
    "solve": as_grid,
    "latency": list,
    "recover": list,
    "evaluate": list,
    "export": list,
}
"""Commands that can be submitted, and how each prepares its words."""

PLANNED = ("prune", "sweep")
"""Those that `multipruner plan` knows."""

_OF_THE_PLAN = ("tflops_per_evaluator", "rate_of")
"""Options that say how long it will take; the job does not get them."""

_IN_THE_RUN = ("evaluate", "export", "recover")
"""Commands that write into the folder of their run unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Args:
        words: options of the command, as they were given, and `cluster=ray`.
        for_plan: those of them that tell of the rate.
        config: what they compose to, with the variables of the environment not looked up: the job
            has an environment of its own.
    """

    command: str
    words: tuple[str, ...]
    for_plan: tuple[str, ...]
    config: DictConfig

    @classmethod
    def of(cls, given: Sequence[str]) -> Request:
        """From the name of a command and its words.

        Raises:
            InputError: with every problem that can be seen without the cluster.
        """
        command, words = _command(given)
        for_plan = tuple(word for word in words if option_of(word) in _OF_THE_PLAN)
        kept = [word for word in words if word not in for_plan]
        if for_plan and command not in PLANNED:
            raise InputError(
                f"{', '.join(for_plan)}: for the plan of {' or '.join(PLANNED)}; leave out"
            )
        secrets = _secrets(kept)
        if secrets:
            raise InputError("\n".join(secrets))
        options = {option.group for option in options_of(command)}
        if "cluster" in options and not any(option_of(word) == "cluster" for word in kept):
            kept.append("cluster=ray")
        config, found = call(command, lambda: partial(_checked, command), kept, SUBMITTED[command])
        request = cls(command, tuple(kept), for_plan, config)
        problems = dict.fromkeys([*request._problems(), *found])
        if problems:
            raise InputError("\n".join(problems))
        return request

    @property
    def entrypoint(self) -> str:
        """For the shell of the node that runs it."""
        return command_line(self.command, *self.words)

    @property
    def given(self) -> list[str]:
        """What followed `submit`, to be given again."""
        return [self.command, *self.words, *self.for_plan]

    @property
    def folder(self) -> str:
        """Where it writes, as the cluster sees it."""
        within = {"recover": "recovery", "export": str(self._value("format"))}
        run = posixpath.join(str(self._value("run")), within.get(self.command, ""))
        return posixpath.normpath(self._value("output_dir") or run)

    @property
    def name(self) -> str:
        """What its jobs are called, without their number."""
        place = posixpath.normpath(self._value("output_dir") or self._value("run"))
        folder = re.sub(r"[^\w-]+", "-", PurePosixPath(place).name, flags=re.ASCII)
        return f"{folder.strip('-') or 'run'}-{self.command}"

    @property
    def warnings(self) -> list[str]:
        """What will not outlive the cluster."""
        uri = str(self._value("tracking.uri") or "")
        if not _is_relative_file(uri):
            return []
        return [
            f"tracking.uri: {uri} will lie on the node that runs the driver, and go with it; "
            "tracking=server sends to the server of the cluster's MLFLOW_TRACKING_URI"
        ]

    def _problems(self) -> list[str]:
        found = []
        run, output_dir = self._value("run"), self._value("output_dir")
        if output_dir is None and not (run and self.command in _IN_THE_RUN):
            found.append(
                "output_dir: missing; give an absolute path on storage that outlives the cluster's "
                "nodes"
            )
        found += [
            f"{name}: {path}, which is relative to wherever the job runs; give an absolute path on "
            "storage that outlives the cluster's nodes"
            for name, path in (
                ("run", run),
                ("output_dir", output_dir),
                ("shape", self._value("shape")),
            )
            if path is not None and not _may_be_absolute(path)
        ]
        if self._value("plan"):
            found.append("plan: true; a plan is no job: give it to multipruner recover on a node")
        url = str(self._value("store.url") or "")
        if _is_relative_file(url) and not self._value("resume"):
            found.append(
                f"store.url: {url}, which is relative to wherever the job runs, and would be lost "
                "with that node; give store=postgresql, which takes MULTIPRUNER_STORE_URL of the "
                "cluster's environment, or store.url=sqlite:////FOLDER/scores.db on such storage"
            )
        return found

    def _value(self, name: str) -> Any:
        """Of an option; None if the command does not have it. References are not looked up."""
        value: Any = OmegaConf.to_container(self.config, resolve=False)
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def _checked(
    command: str, raw: DictConfig, overrides: Sequence[str]
) -> tuple[DictConfig, list[str]]:
    """The configuration, and what is wrong with it."""
    return raw, problems_of_options(command, raw, overrides)


def _command(given: Sequence[str]) -> tuple[str, list[str]]:
    names = ", ".join(SUBMITTED)
    if not given:
        raise InputError(f"COMMAND: missing; give the command to run on the cluster: {names}")
    command, *words = given
    if command not in SUBMITTED:
        close = [] if command in COMMANDS else difflib.get_close_matches(command, SUBMITTED, n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of {names}"
        raise InputError(f"{command}: cannot be submitted; {hint}")
    return command, words


def _secrets(words: Sequence[str]) -> list[str]:
    """Words that hold a password: whoever reaches the dashboard reads them."""
    found = []
    for word in words:
        name, value = option_of(word), word.partition("=")[2]
        if "://" not in value or masked_url(value) == value:
            continue
        advice = (
            f"leave it out, give {URLS[name].choice}, and set {URLS[name].variable} in the "
            "cluster's environment"
            if name in URLS
            else "leave it out"
        )
        shown = without_secrets(masked_url(value), value)
        found.append(f"{name}: {shown} holds a password, which the dashboard would show; {advice}")
    return found


def _may_be_absolute(path: str) -> bool:
    """What a variable of the cluster begins with is known there."""
    return PurePosixPath(path).is_absolute() or path.startswith("${oc.env:")


def _is_relative_file(url: str) -> bool:
    try:
        parts = make_url(url)
    except ArgumentError:  # of a variable, or none
        return False
    is_file = parts.get_backend_name() == "sqlite" and bool(parts.database)
    return is_file and not PurePosixPath(str(parts.database)).is_absolute()
