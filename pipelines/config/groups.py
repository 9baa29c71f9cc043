"""Typed configuration.

Types live here, defaults in `conf/`; every problem is reported at once, before anything is loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf

from pipelines.config.redaction import masked_url
from pruning.costs.latency import ENGINES
from pruning.errors import InputError
from pruning.models.dtypes import DTYPES

CLUSTERS = ("local", "ray", "inline")
_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"(?:{_WORD}/)?{_WORD}")
_SELECTED = re.compile(rf"!?(?:{_WORD}|in\({_WORD}(?:, ?{_WORD})*\))")
"""Names and values of Ray's label selectors."""


@dataclass(frozen=True, slots=True)
class FromVariable:
    """Where a URL with a password belongs.

    Args:
        choice: of the group, which reads it from there.
    """

    variable: str
    choice: str


URLS = {
    "store.url": FromVariable("MULTIPRUNER_STORE_URL", "store=postgresql"),
    "tracking.uri": FromVariable("MLFLOW_TRACKING_URI", "tracking=server"),
}
"""Options that may hold a password."""


_Config = TypeVar("_Config")
_Choice = TypeVar("_Choice", bound=str)


def checked(
    schema: type[_Config], config: DictConfig, problems: Callable[[_Config], list[str]]
) -> _Config:
    """What Hydra composed, as an object of its schema.

    Raises:
        InputError: with every problem at once.
    """
    typed = OmegaConf.to_object(config)
    assert isinstance(typed, schema)
    found = problems(typed)
    if found:
        raise InputError("\n".join(found))
    return typed


def one_of(allowed: tuple[str, ...]) -> Any:
    """A field that takes one of these values, or null where its type says so; `not_allowed` checks
    it.
    """
    return field(default=MISSING, metadata={"allowed": allowed})


def not_allowed(config: Any, prefix: str = "") -> list[str]:
    """The problems of the fields of a schema that are none of the values that they take."""
    given = {each: getattr(config, each.name) for each in fields(config)}
    return [
        f"{prefix}{each.name}: {value!r}; one of {', '.join(each.metadata['allowed'])}"
        for each, value in given.items()
        if "allowed" in each.metadata
        and value is not None
        and value not in each.metadata["allowed"]
    ]


@dataclass
class ModelConfig:
    """Group `model`."""

    path: str = MISSING
    revision: str | None = MISSING
    dtype: str = one_of(DTYPES)
    trust_remote_code: bool = MISSING

    def problems(self) -> list[str]:
        found = (
            []
            if self.path.strip()
            else ["model.path: empty; give a folder, a .gguf file or a hub id"]
        )
        return found + not_allowed(self, "model.")


@dataclass
class ClusterConfig:
    """Group `cluster`."""

    kind: str = one_of(CLUSTERS)
    address: str | None = MISSING
    allow_open: bool = MISSING
    num_evaluators: int | None = MISSING
    num_gpus: int | None = MISSING
    num_gpus_per_evaluator: int | None = MISSING
    num_cpus_per_evaluator: int = MISSING
    label_selector: Any = MISSING  # a mapping that replaces null, which OmegaConf's own does not
    join_timeout_s: float = MISSING
    start_timeout_s: float = MISSING
    stall_timeout_s: float = MISSING
    task_timeout_s: float = MISSING

    def problems(self) -> list[str]:
        found = not_allowed(self, "cluster.")
        found += at_least(
            self,
            "cluster.",
            num_evaluators=1,
            num_gpus=0,
            num_gpus_per_evaluator=0,
            num_cpus_per_evaluator=1,
        )
        for name in ("join_timeout_s", "start_timeout_s", "stall_timeout_s", "task_timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                found.append(f"cluster.{name}: {getattr(self, name):g}; it is in seconds, above 0")
        if self.kind == "inline" and (self.num_evaluators or 1) > 1:
            found.append(
                f"cluster.num_evaluators: {self.num_evaluators}, but cluster=inline is one "
                "evaluator in this process; use cluster=local"
            )
        if self.kind == "inline" and (self.num_gpus_per_evaluator or 0) > 1:
            found.append(
                f"cluster.num_gpus_per_evaluator: {self.num_gpus_per_evaluator}, but "
                "cluster=inline uses one GPU or none; use cluster=local"
            )
        return found + (
            self._problems_of_joining()
            if self.kind == "ray"
            else self._ignored("address", "allow_open", "label_selector", only="cluster=ray")
        )

    def _problems_of_joining(self) -> list[str]:
        found = self._ignored("num_gpus", only="cluster=local; a running cluster knows its GPUs")
        if not (self.address or "").strip():
            found.append(
                "cluster.address: missing; give HOST:PORT of the head of a running Ray cluster, "
                "or auto for the one that this machine belongs to"
            )
        if self.num_gpus_per_evaluator is None:
            found.append(
                "cluster.num_gpus_per_evaluator: null; with cluster=ray give a number: 1, more "
                "for a model that one GPU cannot hold, or 0 for CPUs"
            )
        return found + self._problems_of_labels()

    def _problems_of_labels(self) -> list[str]:
        selector = {} if self.label_selector is None else self.label_selector
        if not isinstance(selector, dict):
            return [
                f"cluster.label_selector: {selector}; give a mapping such as "
                "{ray.io/accelerator-type: H100}"
            ]
        return [
            f"cluster.label_selector: {name}: {value}; Ray takes NAME: VALUE, !VALUE, in(A,B) or "
            "!in(A,B), of letters, digits, _, - and . (with a prefix, PREFIX/NAME)"
            for name, value in selector.items()
            if not (isinstance(value, str) and _LABEL.fullmatch(str(name)))
            or not _SELECTED.fullmatch(value)
        ]

    def _ignored(self, *names: str, only: str) -> list[str]:
        given = [name for name in names if getattr(self, name)]
        return [
            (
                f"cluster.{name}: {getattr(self, name)}, which has no effect with "
                f"cluster={self.kind}; it is for {only}"
            )
            for name in given
        ]


@dataclass
class TrackingConfig:
    """Group `tracking`."""

    uri: str = MISSING
    experiment: str = MISSING
    register: str | None = MISSING
    system_metrics: bool = MISSING

    def problems(self) -> list[str]:
        return self._problems_of_uri() + self._problems_of_name()

    def _problems_of_name(self) -> list[str]:
        if self.register is None or re.fullmatch(r"[^/:'\"%\s][^/:'\"%\n]*", self.register):
            return []
        return [
            f"tracking.register: {self.register!r}; give the name of a registered model, without "
            "any of / : ' \" %"
        ]

    def _problems_of_uri(self) -> list[str]:
        if not self.uri.strip():
            return [
                (
                    "tracking.uri: empty; put it into the environment, as "
                    "MLFLOW_TRACKING_URI=http://HOST:PORT"
                )
            ]
        if (
            self.uri.split("://")[0]
            in ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
            or self.uri == "databricks"
        ):
            return []
        return [
            (
                f"tracking.uri: {masked_url(self.uri)}; give sqlite:///FILE or http(s)://HOST:PORT "
                "(MLflow no longer writes plain folders)"
            )
        ]


@dataclass
class StoreConfig:
    """Group `store`."""

    url: str = MISSING
    retry_s: float = MISSING

    def problems(self) -> list[str]:
        found = []
        if not self.url.strip():
            found.append(
                "store.url: empty; put it into the environment, as "
                "MULTIPRUNER_STORE_URL=postgresql://USER:PASSWORD@HOST/DATABASE"
            )
        elif not is_sqlalchemy_url(self.url):
            found.append(
                f"store.url: {masked_url(self.url)!r} is not an SQLAlchemy URL; give one such as "
                "sqlite:///outputs/scores.db"
            )
        if not 0 <= self.retry_s < math.inf:
            found.append(f"store.retry_s: {self.retry_s:g}; it is in seconds, 0 or more")
        return found


@dataclass
class EvaluationConfig:
    """Group `evaluation`: what a model is measured on."""

    tasks: list[str] = MISSING
    num_fewshot: int | None = MISSING
    limit: int | None = MISSING
    data_dir: str | None = MISSING
    texts: list[str] = MISSING
    max_windows: int | None = MISSING
    sequence_length: int | None = MISSING
    batch_size: int | None = MISSING
    max_length: int | None = MISSING
    dense: bool = MISSING
    cost: bool = MISSING
    cost_batch_size: int = MISSING
    cost_prompt_tokens: int = MISSING
    cost_new_tokens: int = MISSING
    cost_rounds: int = MISSING
    cost_engines: list[str] = MISSING

    @property
    def wanted(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self.tasks or self.texts or self.cost or self.cost_engines)

    def nothing(self) -> Self:
        """The same with nothing to measure."""
        return replace(self, tasks=[], texts=[], cost=False, cost_engines=[])

    def problems(self) -> list[str]:
        found = at_least(
            self,
            "evaluation.",
            num_fewshot=0,
            limit=1,
            max_windows=1,
            sequence_length=2,
            batch_size=1,
            max_length=2,
            cost_batch_size=1,
            cost_prompt_tokens=1,
            cost_new_tokens=1,
            cost_rounds=1,
        )
        found += [
            f"evaluation.cost_engines: {name!r}; one of {', '.join(ENGINES)}"
            for name in self.cost_engines
            if name not in ENGINES
        ]
        for name in ("tasks", "texts", "cost_engines"):
            words = list(getattr(self, name))
            found += [
                f"evaluation.{name}: {word} is there twice"
                for word in dict.fromkeys(words)
                if words.count(word) > 1
            ]
        costs = self.cost or self.cost_engines
        if self.data_dir is not None and costs and not (self.tasks or self.texts):
            found.append(
                f"evaluation.data_dir: {self.data_dir}, which has no effect without "
                "evaluation.tasks"
            )
        return found


@dataclass
class SamplesConfig:
    """What both models write after a few words, at the end of a search.

    Args:
        num_prompts: Texts that they go on with. 0: none.
        num_tokens: That each adds to each text, by greedy decoding.
    """

    num_prompts: int = MISSING
    num_tokens: int = MISSING

    def problems(self) -> list[str]:
        return at_least(self, "samples.", num_prompts=0, num_tokens=1)


def no_system_metrics(given: Sequence[str]) -> list[str]:
    """What is wrong with asking a command for them that is no search."""
    name = "tracking.system_metrics"
    return [f"{name}: is of searches; give it to prune or sweep"] if name in given else []


def is_sqlalchemy_url(url: str) -> bool:
    """Whether SQLAlchemy would take it; the driver's package may still be missing."""
    if url.startswith("sqlite:///"):
        return True  # any text is the name of a file

    from sqlalchemy.engine import (
        make_url,
    )  # takes a while to import, which commands without a store need not wait for
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is not a number
        return False
    return True


def chosen(value: str, allowed: tuple[_Choice, ...]) -> _Choice:
    """The allowed value that a checked text is equal to, as its own type."""
    return allowed[allowed.index(value)]


def at_least(options: object, group: str, **lowest: int) -> list[str]:
    """The problems of options of a group that are too small, by name; null is left to others.

    Args:
        group: its name with a point, for messages.
        lowest: by the name of the option.
    """
    given = {name: getattr(options, name) for name in lowest}
    return [
        f"{group}{name}: {value}; at least {lowest[name]}"
        for name, value in given.items()
        if value is not None and value < lowest[name]
    ]
