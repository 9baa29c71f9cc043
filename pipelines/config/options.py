"""All options of a command: name, type, allowed values, default, meaning.

Types and allowed values are those of the schemas; defaults are what `conf/` composes to. The
meaning is the comment above an option, or behind it, in the file of `conf/` that introduces it: for
a command's own options conf/COMMAND.yaml or a file that it extends, for those of a group a file
that extends no other. Fields that no file sets (those of `expected`) are described in the docstring
of their schema.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union

import omegaconf
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from pipelines.config.overrides import CONF
from pipelines.config.schemas import register

COMMANDS = (
    "prune",
    "plan",
    "sweep",
    "solve",
    "latency",
    "recover",
    "evaluate",
    "export",
    "report",
    "reproduce",
)
"""Commands that Hydra configures: each has its `conf/COMMAND.yaml`."""

_TYPES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    list: "list",
    dict: "mapping",
}


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a command.

    Args:
        name: as on the command line.
        type: in words.
        allowed: the only values that it takes, beside null; empty: any of its type.
        default: in plain types.
    """

    name: str
    type: str
    allowed: tuple[str, ...]
    default: Any
    meaning: str

    @property
    def group(self) -> str:
        """The part of the name before the first dot; "" for an option of the command itself."""
        return self.name.partition(".")[0] if "." in self.name else ""

    @property
    def takes(self) -> str:
        """Its allowed values, else its type, in words."""
        null = " or null" if self.type.endswith("or null") else ""
        return f"one of {', '.join(self.allowed)}{null}" if self.allowed else self.type

    @property
    def is_required(self) -> bool:
        """Whether there is no default."""
        return bool(self.default == omegaconf.MISSING)


@dataclass(frozen=True, slots=True)
class Choice:
    """A file of a group: `GROUP=NAME` takes it.

    Args:
        values: what it sets, of its own or by what it extends, by field.
    """

    name: str
    meaning: str
    values: Mapping[str, Any]


@cache
def options_of(command: str) -> tuple[Option, ...]:
    """In the order of the command's schema.

    The fields of `expected` are listed for `reproduce` alone, which reads them.
    """
    config = _composed(command)
    schema, values = OmegaConf.get_type(config), OmegaConf.to_container(config)
    assert isinstance(schema, type)
    assert isinstance(values, dict)
    return tuple(_options(command, schema, {str(name): values[name] for name in values}, ""))


@cache
def chosen_by(command: str) -> dict[str, str | None]:
    """The file that a command takes of each group that it has, unless told otherwise."""
    chosen = _composed(command).hydra.runtime.choices
    return {name: file for name, file in chosen.items() if (CONF / name).is_dir()}


def is_own(command: str, group: str) -> bool:
    """Whether a command has options of that group without taking a file of it, such as `solve`,
    whose `search.*` are its own.
    """
    return group not in chosen_by(command)


@cache
def choices_of(group: str) -> tuple[Choice, ...]:
    """The files of a group, sorted by name."""
    return tuple(
        Choice(path.stem, title(path), _values(path))
        for path in sorted((CONF / group).glob("*.yaml"))
    )


def shown(value: Any) -> str:
    """A value as one writes it on the command line."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.10f}".rstrip("0").rstrip(".")
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}: {shown(each)}' for name, each in value.items())}}}"
    return "null" if value is None else str(value)


def comments(path: Path) -> dict[str, str]:
    """The comment of each key of a file: the lines above it, else what is behind it."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            above.append(line.lstrip("# ").rstrip())
            continue
        key = re.match(r"(\w+):(?:.*?\s# (.*))?", line)
        if key and key[1] not in ("defaults", "hydra") and (text := " ".join(above) or key[2]):
            found[key[1]] = text
        above = []
    return found


def title(path: Path) -> str:
    """The comment at the top of a file, without the command that it may begin with."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not re.match(r"# (@package|([A-Z_]+=\S+ )?multipruner )", line):
            lines.append(line.lstrip("# ").rstrip())
    return " ".join(lines)


@cache
def _composed(command: str) -> DictConfig:
    """With Hydra's own node."""
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        return compose(command, return_hydra_config=True)


def _options(
    command: str, schema: type, values: Mapping[str, Any] | None, prefix: str
) -> Iterator[Option]:
    texts, hints = _texts(command, schema, prefix), typing.get_type_hints(schema)
    for field in fields(schema):
        parts = _parts(hints[field.name])
        inner = next((part for part in parts if is_dataclass(part)), None)
        value = _default(field) if values is None else values.get(field.name)
        name = prefix + field.name
        if inner is None or value is None:
            allowed = tuple(field.metadata.get("allowed", ()))
            meaning = texts.get(field.name, "")
            yield Option(name, _words(parts), allowed, value, meaning)
        if inner is not None and (value is not None or command == "reproduce"):
            assert isinstance(inner, type)
            given = value if isinstance(value, dict) else None
            yield from _options(command, inner, given, f"{name}.")


def _texts(command: str, schema: type, prefix: str) -> dict[str, str]:
    if not prefix:
        path = CONF / f"{command}.yaml"
        return described_in([*_extended(path), path])
    group = CONF / prefix.rstrip(".")
    if is_own(command, group.name):
        return _described(schema)
    return described_in([path for path in sorted(group.glob("*.yaml")) if not _extended(path)])


def described_in(paths: Iterable[Path]) -> dict[str, str]:
    """The comments of several files.

    Raises:
        ValueError: an option is described in two of them.
    """
    found: dict[str, str] = {}
    for path in paths:
        texts = comments(path)
        if twice := sorted(found.keys() & texts):
            raise ValueError(f"{path}: {', '.join(twice)}: described in another file as well")
        found |= texts
    return found


def _described(schema: type) -> dict[str, str]:
    """From `Args:` of the docstring, where a line may be about several fields."""
    found: dict[str, str] = {}
    entry = r"^    ([a-z_, ]+): (.*(?:\n {8}.*)*)"
    for names, text in re.findall(entry, inspect.getdoc(schema) or "", re.MULTILINE):
        found |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
    return found


def _extended(path: Path) -> list[Path]:
    """The files that a file extends directly, its schema aside."""
    names = yaml.safe_load(path.read_text(encoding="utf-8")).get("defaults", [])
    paths = [path.parent / f"{name}.yaml" for name in names if isinstance(name, str)]
    return [path for path in paths if path.is_file()]


def _values(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for base in _extended(path):
        values |= _values(base)
    values |= yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: value for name, value in values.items() if name != "defaults"}


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _parts(hint: Any) -> tuple[Any, ...]:
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is Union
    return typing.get_args(hint) if is_union else (hint,)


def _words(parts: tuple[Any, ...]) -> str:
    kinds = [part for part in parts if part is not type(None)]
    kinds = [kind for kind in kinds if not (kind is int and float in kinds)]
    names = [_TYPES.get(typing.get_origin(kind) or kind, "mapping") for kind in kinds]
    return " or ".join(names + ["null"] * (type(None) in parts))
