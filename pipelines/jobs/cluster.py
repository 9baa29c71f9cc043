"""The cluster that a command is about: where it is, and what to type to ask it again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.cli.commands import command_line
from pipelines.cli.plain import Parser
from pipelines.errors import Failed
from pruning.errors import InputError
from workers.cluster.jobs import Job, Jobs, JobsError

VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Where Ray's own `ray job` finds the address, too."""

OUTPUT_DIR, VERSION = "output_dir", "multipruner"
"""Metadata of a job."""


def add_address(parser: Parser) -> None:
    """The flag that every command of this kind takes."""
    parser.add_argument("--address", default=None)


@contextmanager
def connected(address: str | None) -> Iterator[Jobs]:
    """The jobs of a cluster, for the time of the context.

    Args:
        address: None: that of the environment.

    Raises:
        InputError: no address, or nothing usable is there.
        Failed: the cluster did not do what it was asked for.
    """
    place = address or os.environ.get(VARIABLE)
    if not place:
        raise InputError(
            "--address: missing; give HOST:PORT of the cluster's dashboard (port 8265 unless "
            f"chosen otherwise), or set {VARIABLE}"
        )
    try:
        yield Jobs(place)
    except JobsError as error:
        raise Failed(str(error)) from error


def asking(command: str, job_id: str, address: str | None, *flags: str) -> str:
    """What to type to run a command about a job."""
    return command_line(command, job_id, *flags, *_given(address))


def again(job: Job, address: str | None) -> str:
    """What to type to submit the same once more; "" for a job that was submitted otherwise."""
    if VERSION not in job.metadata:
        return ""
    return command_line("submit", *_given(address), *shlex.split(job.entrypoint)[1:])


def _given(address: str | None) -> list[str]:
    return ["--address", address] if address else []
