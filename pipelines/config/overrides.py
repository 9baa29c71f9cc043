"""Overrides of the command line: which of them are wrong, and why."""

from __future__ import annotations

import difflib
import io
import re
from argparse import Namespace
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.config.redaction import without_secrets
from pruning.errors import InputError

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


PATHS = {
    "calibration.path",
    "checkpoint",
    "evaluation.data_dir",
    "latency",
    "model.path",
    "output_dir",
    "rate_of",
    "record",
    "run",
    "shape",
    "store.url",
    "tokenizer_gguf",
    "tracking.uri",
}
"""Options that name a file, a folder or a server."""


def with_quoted_path(word: str, *, multirun: bool = False) -> str:
    """`output_dir='a (b), ü'` for `output_dir=a (b), ü`: a path may hold characters that mean
    something to Hydra. What Hydra reads as one text, a list or a reference is left as it is.

    Args:
        multirun: `output_dir=a,b` are two paths, unless there is a file of that name.
    """
    name, _, value = word.partition("=")
    option = re.sub(r"(?<=^calibration\.)sources\.\d+\.", "", option_of(word))
    if option not in PATHS or not value:
        return word
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return f"{name}={quoted(value)}"
    # `model.path=a,b` is what --multirun takes, and what a sweep explains
    several = multirun or name.endswith(".path")
    one = not several or Path(value).expanduser().exists()
    return f"{name}={quoted(value)}" if override.is_sweep_override() and one else word


def flag_problems(config_name: str, words: Sequence[str]) -> list[str]:
    """What to say of options that are given as other programs take them, `--target-ratio 0.1`, and
    of flags of Hydra that lack a value or have a wrong one.
    """
    wrong = [word for word in words if word.startswith("-") and not _is_flag(word)]
    if wrong:
        with initialize_config_dir(str(CONF), version_base=None):
            names = option_names(compose(config_name))
        return [_as_option(word, names) for word in wrong]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        try:
            get_args_parser().parse_args(words)
        except SystemExit as end:
            if end.code:
                return [said.getvalue().rpartition("error: ")[2].strip()]
    return []


def hydra_flags(words: Sequence[str]) -> Namespace:
    """What Hydra makes of words that `flag_problems` found nothing in: its flags, which may be
    shortened, and under `overrides` what is neither a flag nor the value of one.
    """
    found: Namespace = get_args_parser().parse_args(words)
    return found


def asks_for_multirun(words: Sequence[str]) -> bool:
    """Whether --multirun is among words of any kind, or a short form of it."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            return bool(get_args_parser().parse_known_args(words)[0].multirun)
        except SystemExit:  # other flags are wrong, or ask for something else
            return False


def _is_flag(word: str) -> bool:
    """One of Hydra's, which may be shortened."""
    name = word.partition("=")[0]
    flags = {flag for action in get_args_parser()._actions for flag in action.option_strings}
    return name in flags or (len(name) > 2 and any(flag.startswith(name) for flag in flags))


def _as_option(word: str, names: Sequence[str]) -> str:
    flag, equals, value = word.partition("=")
    wanted = flag.lstrip("-").replace("-", "_")
    found = [name for name in names if name.rpartition(".")[2] == wanted or name == wanted]
    found = found or difflib.get_close_matches(wanted, names, n=1)
    hint = (
        f"did you mean {found[0]}={value if equals else 'VALUE'}?" if found else "--help lists all"
    )
    return f"{flag}: options are given as NAME=VALUE; {hint}"


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
    said = composition_error(error)
    if name == "search.target":
        said = (
            "a target is of a cost, such as search.target.parameters=0.2 or search.target_ratio=0.2"
        )
    if name == "calibration.sources":
        said += "; it takes a list such as [{source: pydoc}, {source: text, path: my.txt}]"
    if "=[" in override and "of type 'list' could not be converted" in said:
        said = f"{said}: it takes one value; several are for multipruner sweep"
    if isinstance(error, MissingConfigException):
        close = difflib.get_close_matches(value, _files_of(name), n=1)
        said += f"; did you mean {name}={close[0]}?" if close else ""
    return without_secrets(f"{override}: {said}", value)


def _files_of(group: str) -> list[str]:
    folder = CONF / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def unknown_option(name: str, names: Sequence[str]) -> str:
    """What to say of an option that does not exist."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"{name}: no such option" + (
        f"; did you mean {close[0]}?" if close else "; --help lists all"
    )


def check_axes(axes: Iterable[str], config: DictConfig) -> None:
    """Whether there are options of these names; composing tells of groups of files.

    Args:
        axes: what was given several values.
        config: of the command.

    Raises:
        InputError: with every one that does not exist.
    """
    names = option_names(config)
    unknown = [unknown_option(name, names) for name in axes if "." in name and name not in names]
    if unknown:
        raise InputError("\n".join(unknown))


def composed(command: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of one point, inside `launch`, which has Hydra set up.

    Raises:
        InputError: they do not compose.
    """
    try:
        return compose(command, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        name = getattr(error.__cause__, "full_key", None) or "grid"
        raise InputError(f"{name}: {composition_error(error)}") from error


def composition_error(error: Exception) -> str:
    """What Hydra says is wrong, in one line, without the folders that it looked through."""
    cause = error.__cause__ or error
    lines = [
        line.strip()
        for line in str(cause).splitlines()
        if line.strip()
        and not line.strip().startswith(("full_key", "object_type", "reference_type"))
    ]
    return " ".join(lines).partition(" Config search path")[0]


def option_names(config: DictConfig) -> list[str]:
    """Of groups, their options, and options without a group; of a list of mappings, the fields of
    each, such as `calibration.sources.0.share`.
    """
    return _names(OmegaConf.to_container(config), "")


def _names(values: Any, prefix: str) -> list[str]:
    names: list[str] = []
    for name, value in values.items():
        names.append(f"{prefix}{name}")
        if isinstance(value, dict):
            names += _names(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                names += _names(item, f"{prefix}{name}.{index}.") if isinstance(item, dict) else []
    return names
