"""The command that repeats a run, from the settings that it has."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipelines.cli.commands import command_line
from pipelines.config.overrides import composed, quoted

DECIDES = ("model", "calibration", "search", "latency", "memory", "evaluation", "export")
"""Options of a search that say what is computed; the others say where, and there is no URL among
these.
"""


def repeating(
    command: str,
    saved: DictConfig,
    names: Sequence[str] = DECIDES,
    *,
    choices: Sequence[str] = (),
    without: Collection[str] = (),
) -> str:
    """What to type for a run with these settings in another folder; a shell takes it as it is.

    Inside `launch`, which has Hydra set up.

    Args:
        saved: every setting of the run, as it is saved.
        names: its groups and options that decide the result.
        choices: words that choose files of groups, to begin with.
        without: options that the command does not take.
    """
    default, plain = _defaults(command, tuple(choices)), _plain(saved)
    words = [
        *choices,
        *(
            f"{name}={_written(value)}"
            for group in names
            if group in plain  # else it has its defaults
            for name, value in _differing(plain[group], default[group], group)
            if name not in without
        ),
    ]
    return command_line(command, *words)


@cache
def _defaults(command: str, choices: tuple[str, ...]) -> dict[str, Any]:
    return _plain(composed(command, choices))


def _plain(config: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(config)
    return dict(plain)


def _differing(value: Any, default: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and isinstance(default, dict):
        for each, inner in value.items():
            yield from _differing(inner, default.get(each), f"{name}.{each}")
    elif value != default:
        yield name, value


def _written(value: Any) -> str:
    """In Hydra's grammar, with quotes only where it needs them."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            is_plain = re.fullmatch(r"(?!(?i:null|true|false|nan|inf)$)[A-Za-z_/][\w./-]*", value)
            return value if is_plain else quoted(value)
        case Mapping():
            given = (f"{name}:{_written(each)}" for name, each in value.items() if each is not None)
            return f"{{{','.join(given)}}}"
        case Sequence():
            return f"[{','.join(map(_written, value))}]"
    return f"{value:g}" if isinstance(value, float) and value == float(f"{value:g}") else str(value)
