"""Commands without a configuration: what they take are words and flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from pipelines.cli.commands import COMMANDS, PROGRAM
from pipelines.cli.console import stop
from pipelines.cli.help import FLAGS, print_help
from pipelines.cli.signals import Interruption
from pipelines.errors import Failed
from pruning.errors import InputError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as the other commands do."""

    def error(self, message: str) -> NoReturn:
        stop(f"{message}; --help lists all", 2)


def run_plain(
    name: str,
    add_options: Callable[[Parser], None],
    action: Callable[[argparse.Namespace], object],
) -> None:
    """Does what the words of the command line say; the exit status is as of `launch`."""
    if FLAGS & set(sys.argv[1:]):
        print_help(name)
        return
    parser = Parser(usage=f"{PROGRAM} {name} {COMMANDS[name].usage}", allow_abbrev=False)
    add_options(parser)
    arguments = parser.parse_intermixed_args()
    interruption = Interruption()
    try:
        with interruption:
            action(arguments)
    except InputError as error:
        stop(str(error), 2)
    except Failed as error:
        stop(str(error), 1)
    except KeyboardInterrupt:
        sys.exit(interruption.status)
