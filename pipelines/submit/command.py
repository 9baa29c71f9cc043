"""`multipruner submit COMMAND ...`: runs a command as a job of a Ray cluster, where it goes on when
this machine is switched off.
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib.metadata import version

from pipelines.cli.commands import PROGRAM, command_line
from pipelines.cli.console import log_to, print_line
from pipelines.cli.plain import Parser, run_plain
from pipelines.errors import Failed
from pipelines.jobs.cluster import OUTPUT_DIR, VERSION, add_address, asking, connected
from pipelines.submit.plan import evaluators_in_words, show_plan
from pipelines.submit.request import Request
from pruning.errors import InputError
from workers.cluster.jobs import Jobs

_STOP_S = 30
"""What a driver takes at most to close its evaluators and to tell MLflow."""


def main() -> None:
    """Does what the words of the command line say."""
    run_plain("submit", _add_options, _submit)


def _add_options(parser: Parser) -> None:
    add_address(parser)
    parser.add_argument("--yes", action="store_true")
    parser.add_argument("words", nargs="*")


def _submit(arguments: argparse.Namespace) -> None:
    log_to(None)
    request = Request.of(arguments.words)
    if not arguments.yes and not sys.stdin.isatty():
        raise InputError(
            "--yes: missing; without a terminal nobody can be asked whether to submit, so give "
            "--yes"
        )
    with connected(arguments.address) as jobs:
        _check(jobs, request, arguments.address)
        _show(jobs, request)
        if not arguments.yes and not _confirmed():
            raise Failed("not submitted")
        job_id = jobs.submit(
            request.entrypoint,
            submission_id=_new_id(jobs, request.name),
            metadata={VERSION: version(PROGRAM), OUTPUT_DIR: request.folder},
            stop_s=_STOP_S,
        )
    address = arguments.address
    again = command_line("submit", *(["--address", address] if address else []), *request.given)
    print_line(f"submitted as {job_id}")
    print_line(f"  watch:  {asking('logs', job_id, address, '--follow')}")
    print_line(f"  stop:   {asking('stop', job_id, address)}")
    print_line(f"  to go on, should it or its cluster die: {again}")


def _check(jobs: Jobs, request: Request, address: str | None) -> None:
    """Whether this cluster should run it.

    Raises:
        InputError: it asks for no token, or a job is at work in the same folder.
    """
    allow_open = bool(request.config.get("cluster", {}).get("allow_open", False))
    if jobs.is_open and not allow_open:
        raise InputError(
            f"--address: the cluster at {jobs.url} asks for no token: whoever reaches its ports "
            "runs code as you. Start all its nodes with RAY_AUTH_MODE=token (the token: ray "
            "get-auth-token --generate)"
            + (", or accept it with cluster.allow_open=true" if "cluster" in request.config else "")
        )
    for job in jobs.list():
        if not job.is_over and job.metadata.get(OUTPUT_DIR) == request.folder:
            raise InputError(
                f"output_dir: the job {job.submission_id} is at work in {request.folder}; wait for "
                f"it, or end it with {asking('stop', job.submission_id, address)}"
            )


def _show(jobs: Jobs, request: Request) -> None:
    """What will run, and where."""
    show_plan(request)
    print_line(f"command:    {request.entrypoint}")
    print_line(f"cluster:    {jobs.url}, Ray {jobs.ray_version}")
    if evaluators := evaluators_in_words(request):
        print_line(f"evaluators: {evaluators}")
    print_line(f"folder:     {request.folder}, which must outlive the nodes of the cluster")
    for warning in (*request.warnings, *jobs.warnings):
        print_line(f"warning: {warning}")


def _confirmed() -> bool:
    try:
        return input("submit? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _new_id(jobs: Jobs, name: str) -> str:
    """The name and the next free number: ids stay taken as long as the cluster lives."""
    numbers = [
        int(found[1])
        for job in jobs.list()
        if (found := re.fullmatch(rf"{re.escape(name)}-(\d+)", job.submission_id))
    ]
    return f"{name}-{max(numbers, default=0) + 1}"
