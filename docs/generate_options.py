"""Writes docs/reference/options.md: every option of every command."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipelines.config.options import (
    COMMANDS,
    Choice,
    Option,
    choices_of,
    chosen_by,
    is_own,
    options_of,
    shown,
)

PAGE = Path(__file__).resolve().parent / "reference" / "options.md"
INTRODUCTION = """\
# Options

<!-- Written by `make docs` from the comments in conf/ and the schemas. Do not edit. -->

`multipruner COMMAND NAME=VALUE ...`. Lists are written `[a,b]`, null means that the command
chooses. `GROUP=CHOICE` takes a file of `conf/GROUP`, which sets all options of the group; single
options are on top of it. A mistake gets one message per option, all at once, before anything is
loaded.

The groups belong to several commands; [the commands](#commands) say which.
"""
ABOUT = {
    "expected": "Figures of an experiment. `multipruner reproduce` compares with them.\n",
    "experiment": (
        "`experiment=NAME` takes a file of `conf/experiment`, which sets options of several "
        "groups. The first comment of each file is the command that it is for.\n"
    ),
}
"""What is said of a group instead of its choices."""


def page() -> str:
    """The whole page."""
    options = {command: options_of(command) for command in COMMANDS}
    groups: dict[str, list[Option]] = {"experiment": []}
    for command in COMMANDS:
        for group in _groups(command, options[command]):
            groups.setdefault(group, [each for each in options[command] if each.group == group])
    sections = [_section(group, groups[group]) for group in sorted(groups)]
    commands = [_command(command, options[command]) for command in COMMANDS]
    return "\n".join([INTRODUCTION, *sections, "## Commands\n", *commands])


def _section(group: str, options: Iterable[Option]) -> str:
    """A group is the same in every command that has it."""
    about = ABOUT.get(group)
    choices = [] if about else choices_of(group)
    said = [f"- `{group}={choice.name}`: {choice.meaning}\n" for choice in choices]
    items = [_item(option, choices) for option in options]
    return _paragraphs(f"## {group}\n", [about] if about else said, items)


def _command(command: str, options: Sequence[Option]) -> str:
    shared = _groups(command, options)
    groups = [*shared, *(["experiment"] if "experiment" in chosen_by(command) else [])]
    links = ", ".join(f"[`{group}`](#{group})" for group in groups)
    items = [_item(option, []) for option in options if option.group not in shared]
    return _paragraphs(f"### {command}\n", [f"Groups: {links}.\n"] if groups else [], items)


def _groups(command: str, options: Iterable[Option]) -> list[str]:
    """Those that have a section: not the ones whose options are a command's own."""
    names = dict.fromkeys(option.group for option in options if option.group)
    return [name for name in names if name in ABOUT or not is_own(command, name)]


def _item(option: Option, choices: Iterable[Choice]) -> str:
    """With its default, and the values that the choices of its group set instead."""
    field = option.name.rpartition(".")[2]
    default = shown(option.default)
    others: dict[str, list[str]] = {}
    for choice in choices:
        value = shown(choice.values.get(field, option.default))
        if value != default:
            others.setdefault(value, []).append(choice.name)
    first = "required" if option.is_required else f"default `{default}`"
    given = [f"`{value}` with {', '.join(names)}" for value, names in others.items()]
    facts = "; ".join([option.takes, first, *given])
    return f"- **`{option.name}`** ({facts}): {option.meaning}\n"


def _paragraphs(*parts: str | Sequence[str]) -> str:
    """Each of them a text or a list, with an empty line between them."""
    wrapped = ["".join(map(_wrapped, [part] if isinstance(part, str) else part)) for part in parts]
    return "\n".join(part for part in wrapped if part)


def _wrapped(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    lines = textwrap.wrap(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"written to {PAGE}\n")
