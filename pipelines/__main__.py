"""`multipruner COMMAND ...`: lists the commands, explains one, or runs one."""

from __future__ import annotations

import difflib
import runpy
import sys
from importlib.metadata import version

from pipelines.cli.signals import exit_on_signals


def main() -> None:
    """Does what the words of the command line say; exit status 2 where they say nothing known."""
    with exit_on_signals():
        from pipelines.cli.commands import COMMANDS, PROGRAM
        from pipelines.cli.console import stop
        from pipelines.cli.help import FLAGS, print_help, print_overview

        name, *words = sys.argv[1:] or ["--help"]
        if name in FLAGS:
            print_overview()
        elif name == "--version":
            sys.stdout.write(f"{PROGRAM} {version(PROGRAM)}\n")
        elif name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; one of {', '.join(COMMANDS)}"
            stop(f"{name}: no such command{hint}", 2)
        elif FLAGS & set(words):
            print_help(name)
        else:
            sys.argv[1:] = words
            runpy.run_module(f"pipelines.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
