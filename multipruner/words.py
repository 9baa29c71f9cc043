"""Options as keyword arguments, and the words of a command line that they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.errors import InputError

if TYPE_CHECKING:
    from pipelines.cli.launch import Job

_SHORT = (
    "a model is model.path, target is search.target_ratio, text is calibration=text with "
    "calibration.path, tasks and texts are those of evaluation"
)
_OTHER_TYPES = {"true", "false", "null", "inf", "nan"}
"""Text that Hydra would read as something else."""


def run_command(
    name: str,
    load: Callable[[], Job],
    *options: Mapping[str, Any],
    prepare: Callable[[Sequence[str]], list[str]] = list,
) -> dict[str, Any]:
    """Runs a command in this process; what it returns.

    Args:
        load: imports the command.
        options: see `words_of`.

    Raises:
        InputError: with the message of the command; see `pipelines.cli.launch.call` for others.
    """
    from pipelines.cli.launch import call

    returned: dict[str, Any] = call(name, load, words_of(*options), prepare)
    return returned


def of_search(model: object, target: object, text: object) -> dict[str, Any]:
    """Options of a search under their names on the command line; None stands for the default."""
    of_text = {} if text is None else {"calibration": "text", "calibration.path": text}
    name = "search.target" if isinstance(target, Mapping) else "search.target_ratio"
    given = {"model": model, name: target, **of_text}
    return {name: value for name, value in given.items() if value is not None}


def words_of(*options: Mapping[str, Any]) -> list[str]:
    """`NAME=VALUE` for each option.

    Args:
        options: values by name; a mapping as value holds options of that group, as in
            `search={"seed": 1}` for `search.seed`; that of `grid` is its value. Values are text,
            paths, numbers, True, False, None, and lists and mappings of them; text is taken as it
            is, and `${` looks nothing up.

    Raises:
        InputError: an option is given twice, or has a value of another type.
    """
    from pipelines.config.overrides import option_of, spelt_out

    words, wrong = [], []
    for name, value in (each for given in options for each in _flat(given, "")):
        try:
            words.append(f"{name}={_text(_plain(value))}")
        except TypeError as error:
            wrong.append(f"{name}: {error}")
    counts = Counter(option_of(spelt_out(word)) for word in words)
    twice = [
        f"{name}: given {count} times; {_SHORT}: give each once"
        for name, count in counts.items()
        if count > 1
    ]
    if twice or wrong:
        raise InputError("\n".join([*twice, *wrong]))
    return words


def _flat(options: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, Mapping) and f"{prefix}{name}" != "grid":
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value: Any) -> Any:
    """In Python's own types: numbers and truth values of numpy are none of them."""
    import numpy as np

    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    raise TypeError(
        f"a value of type {type(value).__name__}; options take text, paths, numbers, True, False, "
        "None, and lists and mappings of them"
    )


def _text(value: Any) -> str:
    """In Hydra's grammar; as a person would write it where that means the same."""
    from pipelines.config.grid import written

    is_plain = (
        isinstance(value, str)
        and re.fullmatch(r"([A-Za-z_/]|\.\.?/)[\w.:@%+/-]*", value, re.ASCII)
        and value.lower() not in _OTHER_TYPES
    )
    return value if is_plain else written(value)
