"""`multipruner jobs`, `multipruner logs ID` and `multipruner stop ID`."""

from __future__ import annotations

import argparse
import sys
import time

from rich.table import Table

from pipelines.cli.console import console, duration, print_line
from pipelines.cli.plain import Parser, run_plain
from pipelines.errors import Failed
from pipelines.jobs.cluster import OUTPUT_DIR, VERSION, add_address, again, asking, connected
from workers.cluster.jobs import Job


def list_jobs() -> None:
    """`multipruner jobs`: those that `multipruner submit` started, the newest last."""
    run_plain("jobs", add_address, _list)


def show_logs() -> None:
    """`multipruner logs`: what the driver of a job wrote."""

    def add_options(parser: Parser) -> None:
        _add_job(parser)
        parser.add_argument("--follow", action="store_true")

    run_plain("logs", add_options, _show_logs)


def stop_job() -> None:
    """`multipruner stop`: ends a job; what it computed is kept."""
    run_plain("stop", _add_job, _stop)


def _add_job(parser: Parser) -> None:
    parser.add_argument("job")
    add_address(parser)


def _list(arguments: argparse.Namespace) -> None:
    with connected(arguments.address) as jobs:
        found = [job for job in jobs.list() if VERSION in job.metadata]
    if not found:
        print_line(f"no jobs of multipruner at {jobs.url}")
        return
    rows = Table(title=f"jobs at {jobs.url}", title_justify="left")
    for name, side in (("job", "left"), ("state", "left"), ("started", "left"), ("took", "right")):
        rows.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
    rows.add_column("output_dir", overflow="fold")
    for job in found:
        rows.add_row(
            job.submission_id,
            job.status.lower(),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started)) if job.started else "",
            duration((job.ended or time.time()) - job.started) if job.started else "",
            job.metadata.get(OUTPUT_DIR, ""),
        )
    console.print(rows)


def _show_logs(arguments: argparse.Namespace) -> None:
    with connected(arguments.address) as jobs:
        if not arguments.follow:
            _write(jobs.logs(arguments.job))
            return
        jobs.follow(arguments.job, _write)
        job = jobs.find(arguments.job)
    if not job.is_over:
        raise Failed(
            f"{job.submission_id}: it goes on, but the connection ended; to follow it again: "
            + asking("logs", job.submission_id, arguments.address, "--follow")
        )
    if job.status != "SUCCEEDED":
        raise Failed(_ended(job, arguments.address))


def _ended(job: Job, address: str | None) -> str:
    goes_on = again(job, address)
    return f"{job.submission_id}: {job.status.lower()}: {job.message}" + (
        f"\n  Everything computed so far is kept. To go on: {goes_on}" if goes_on else ""
    )


def _stop(arguments: argparse.Namespace) -> None:
    with connected(arguments.address) as jobs:
        job = jobs.find(arguments.job)
        if not jobs.stop(arguments.job):
            print_line(f"{job.submission_id}: over already ({job.status.lower()})")
            return
    print_line(f"{job.submission_id}: stopping; what it computed is kept")
    print_line(f"  how it ends: {asking('logs', job.submission_id, arguments.address)}")
    if goes_on := again(job, arguments.address):
        print_line(f"  to go on:    {goes_on}")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
