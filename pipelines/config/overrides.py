"""Overrides of the command line: which of them are wrong, and why."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.config.redaction import without_secrets

CONF = Path(__file__).resolve().parents[2] / "conf"


def quoted(word: str) -> str:
    """Any text as a quoted string of Hydra's grammar: backslashes count only before a quote, and
    `${` would be looked up.
    """
    return (
        "'"
        + re.sub(
            r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), word
        ).replace("${", "\\${")
        + "'"
    )


def as_override(name: str, value: object) -> str:
    """`NAME=VALUE` in Hydra's grammar, which reads it as that text."""
    text = str(value)
    is_plain_path = re.fullmatch(r"[\w.:@%+-]*(/[\w.:@%+-]*)+", text)
    return f"{name}={text if is_plain_path else quoted(text)}"


def spelt_out(word: str) -> str:
    """`model=PATH` for `model.path=PATH`: people write it, and Hydra takes it for a file of
    `conf/model`.
    """
    name, _, value = word.partition("=")
    return (
        f"model.path={value}"
        if name == "model" and value and not (CONF / "model" / f"{value}.yaml").is_file()
        else word
    )


def option_of(override: str) -> str:
    """The option that an override sets: `search.seed` of `+search.seed=1` or `~search.seed`."""
    return override.partition("=")[0].lstrip("+~")


def override_problems(config_name: str, overrides: Sequence[str]) -> list[str]:
    """What is wrong with each override on its own, if the whole does not compose."""
    with initialize_config_dir(str(CONF), version_base=None):
        wrong = _not_composing(config_name, overrides)
        names = option_names(compose(config_name)) if wrong else []
    return [
        _explain(override, error, names) if override else composition_error(error)
        for override, error in wrong
    ]


def _not_composing(config_name: str, overrides: Sequence[str]) -> list[tuple[str, Exception]]:
    """Overrides that are wrong on their own; "" where only several together are.

    Searched for by halves: composing takes a tenth of a second, and of twenty one or two are wrong.
    """
    try:
        compose(config_name, overrides=list(overrides))
        return []
    except (HydraException, OmegaConfBaseException) as error:
        if len(overrides) == 1:
            return [(overrides[0], error)]
        half = len(overrides) // 2
        parts = (overrides[:half], overrides[half:]) if half else ()
        found = [wrong for part in parts for wrong in _not_composing(config_name, part)]
        return found or [("", error)]


def _explain(override: str, error: Exception, names: Sequence[str]) -> str:
    name = option_of(override)
    if name not in names and not isinstance(error, MissingConfigException):
        return unknown_option(name, names)
    value = override.partition("=")[2].lstrip(
        "[{'\""
    )  # where the grammar is at fault, a URL may be behind any of these
    return without_secrets(f"{override}: {composition_error(error)}", value)


def unknown_option(name: str, names: Sequence[str]) -> str:
    """What to say of an option that does not exist."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"{name}: no such option" + (
        f"; did you mean {close[0]}?" if close else "; --help lists all"
    )


def composition_error(error: Exception) -> str:
    """What Hydra says is wrong, in one line."""
    cause = error.__cause__ or error
    lines = [
        line.strip()
        for line in str(cause).splitlines()
        if line.strip()
        and not line.strip().startswith(("full_key", "object_type", "reference_type"))
    ]
    return " ".join(lines)


def option_names(config: DictConfig) -> list[str]:
    """Of groups, their options, and options without a group."""
    names: list[str] = []
    for name, value in OmegaConf.to_container(config).items():  # type: ignore[union-attr]
        names.append(str(name))
        if isinstance(value, dict):
            names += [f"{name!s}.{field!s}" for field in value]
    return names
