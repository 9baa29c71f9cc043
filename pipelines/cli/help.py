"""Help texts: the list of commands, and what one command takes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.text import Text

from pipelines.cli.commands import COMMANDS, PROGRAM
from pipelines.config.options import Option, choices_of, chosen_by, options_of, shown

FLAGS = frozenset({"-h", "--help"})
"""Words that ask for help."""

_WIDTH = 100
_HYDRA_FLAGS = (
    ("--cfg job", "Show the configuration that the other words make, and stop."),
    ("--hydra-help", "The manual of Hydra, which reads the command line."),
)

Section = tuple[str, Sequence[tuple[str, str]]]
"""A title, and rows of a name and what it means."""


def print_overview() -> None:
    """The commands, one line each."""
    rows = [(command.name, command.summary) for command in COMMANDS.values()]
    _print(
        [
            Text(f"Usage: {PROGRAM} COMMAND [NAME=VALUE ...]\n"),
            Text("Structured pruning of language models without training (arXiv 2501.09949).\n"),
            *_in_columns([("Commands", rows)]),
            Text(f"{PROGRAM} COMMAND --help says what a command does and what it takes."),
        ]
    )


def print_help(name: str) -> None:
    """What a command does, three examples, and its options by group."""
    command = COMMANDS[name]
    lines = [Text(f"Usage: {PROGRAM} {name} {command.usage}\n")]
    lines += [Text(f"{textwrap.fill(command.description, _WIDTH)}\n"), Text("Examples", "bold")]
    for words, does in command.examples:
        lines += [Text(f"  {PROGRAM} {name} {words}".rstrip(), "cyan"), Text(f"      {does}")]
    sections = [] if command.flags else list(_options(name))
    flags = command.flags or _HYDRA_FLAGS
    _print([*lines, Text(), *_in_columns([*sections, ("Flags", flags)])])


def _options(name: str) -> Iterator[Section]:
    """Those of the command itself, then those of each group that it has."""
    options, chosen = options_of(name), chosen_by(name)
    own = [_row(option) for option in options if not option.group]
    if "experiment" in chosen:
        about = "A file of conf/experiment, which sets options of several groups."
        own.append(("experiment", f"{about} [default null]"))
    yield "Options", own
    for group in dict.fromkeys(option.group for option in options if option.group):
        choices = [
            (f"{group}={choice.name}", choice.meaning + default)
            for choice in (choices_of(group) if group in chosen else ())
            for default in [" [default]" if choice.name == chosen[group] else ""]
        ]
        rows = [_row(option) for option in options if option.group == group]
        yield f"Options of the group {group}", [*choices, *rows]


def _row(option: Option) -> tuple[str, str]:
    default = "required" if option.is_required else f"default {shown(option.default)}"
    return option.name, f"{option.meaning} [{option.takes}; {default}]"


def _in_columns(sections: Sequence[Section]) -> Iterator[Text]:
    """Names in one column, what they mean in another."""
    width = 2 + max(len(name) for _, rows in sections for name, _ in rows)
    indent = " " * (2 + width)
    for title, rows in sections:
        yield Text(title, "bold")
        for name, meaning in rows:
            first, *others = textwrap.wrap(meaning, _WIDTH - len(indent), break_on_hyphens=False)
            yield Text.assemble("  ", (f"{name:<{width}}", "cyan"), first)
            yield from (Text(indent + line) for line in others)
        yield Text()


def _print(lines: Iterable[Text]) -> None:
    """A terminal that is narrower breaks the lines itself; what is piped has no colours."""
    console = Console(highlight=False)
    for line in lines:
        console.print(line, soft_wrap=True)
