"""`make cluster-test`: a search on a Ray cluster of several nodes, with PostgreSQL and an MLflow
server, and everything that can go away goes away.

What must come out is what one undisturbed process comes to: the same trajectory to the last byte,
and the same scores in the store. Needs PostgreSQL; takes about ten minutes on two cores. All is in
one folder, which stays after a failure.

MULTIPRUNER_CLUSTER_TEST_S makes the search longer or shorter: the seconds that one core is busy
with it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from mlflow import MlflowClient
from sqlalchemy.engine import make_url

from pipelines.prune.search_run import ARTIFACTS
from pipelines.tracking.metrics import step_metrics
from tests.cluster.command import Command, Status, at_work, tasks_in_flight
from tests.cluster.mlflow_server import MlflowServer
from tests.cluster.traces import Traces
from tests.cluster.workload import make_workload
from tests.pipelines.command import without_times
from tests.postgres import PostgresServer
from tests.ray_nodes import RayNode, RayNodes, new_token

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

NUM_NODES = 3
MLFLOW_AWAY_S = 60.0
POSTGRES_AWAY_S = 5.0
TASK_TIMEOUT_S = 20.0
FREEZE_S = 0.3
"""Longer than the driver needs to take an answer that was on its way."""
SOON_S, LATE_S = 120.0, 300.0
"""Deadlines on a machine that others use too: what takes seconds, and what takes a new process that
imports torch.
"""

NODE = {"RAY_worker_niceness": "0"}
"""Ray gives its workers the least time of all (nice 15), which on a machine that others use can
make this take for ever.
"""

MARK = "MULTIPRUNER_CLUSTER_TEST_MARK"
_SCORES = "SELECT context, shape, batch, nll, num_tokens FROM scores ORDER BY context, shape, batch"


T = TypeVar("T")


@dataclass
class Row:
    """One line of the table. Times in seconds since the fault."""

    fault: str
    when_s: float
    in_flight: str
    lost: str = "0"
    noticed_s: float | None = None
    pause_s: float | None = None
    whole_s: float | None = None
    notes: list[str] = field(default_factory=list)


class Story:
    """Prints what happens, and keeps the table."""

    def __init__(self) -> None:
        self.started = time.time()
        self.rows: list[Row] = []

    @property
    def now(self) -> float:
        return time.time() - self.started

    def tell(self, text: str) -> None:
        write(f"[{self.now:6.1f} s] {text}")

    def table(self) -> str:
        head = (
            "fault",
            "at",
            "in flight",
            "lost",
            "noticed after",
            "longest pause",
            "all back after",
            "",
        )
        lines: list[tuple[str, ...]] = [head]
        for row in self.rows:
            times = [
                f"{seconds:.1f} s" if seconds is not None else "-"
                for seconds in (row.when_s, row.noticed_s, row.pause_s, row.whole_s)
            ]
            lines.append(
                (row.fault, times[0], row.in_flight, row.lost, *times[1:], "; ".join(row.notes))
            )
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


@dataclass
class Scene:
    """Everything that takes part."""

    story: Story
    search: Command
    nodes: RayNodes
    workers: list[RayNode]
    postgres: PostgresServer
    database: str
    mlflow: MlflowServer
    traces: Traces
    status_at_kill: Status = field(default_factory=dict)
    stored_at_kill: int = 0

    def num_stored(self) -> int:
        [[count]] = self.postgres.execute("SELECT count(*) FROM scores", self.database)
        return int(count)

    def evaluator_processes(self) -> list[int]:
        return [
            pid
            for node in self.nodes.nodes
            for pid in node.pids()
            if "EvaluatorActor" in _title(pid)
        ]

    def watch(
        self,
        row: Row,
        *,
        whole: Callable[[Status], object],
        noticed: Callable[[Status], object] | None = None,
        stored: int | None = None,
    ) -> Status:
        """Follows a fault until it is noticed, scores come again, and everything is back; fills in
        the row.
        """
        began = self.story.started + row.when_s
        before = stored if stored is not None else self.search.progress[-1][1]
        seen: dict[str, float] = {}

        def told(what: str, happened: Callable[[], object]) -> bool:
            if what not in seen and happened():
                seen[what] = time.time() - began
                self.story.tell(f"    {what} ({seen[what]:.1f} s after the fault)")
            return what in seen

        def over(status: Status) -> bool:
            known = noticed is None or told("noticed", lambda: noticed(status))
            going = told(
                "new scores are stored",
                lambda: status.get("evaluations", {}).get("scored", 0) > before,
            )
            return told("everything is back", lambda: known and whole(status)) and going

        status = self.search.until(f"{row.fault}: noticed, and everything back", over, LATE_S)
        row.noticed_s = seen.get("noticed", row.noticed_s)
        row.whole_s = seen["everything is back"]
        row.pause_s = self.search.longest_pause_s(began, status["updated"])
        self.story.rows.append(row)
        return status

    def meanwhile(self, act: Callable[[], T]) -> T:
        """Does something while the search is watched."""
        with ThreadPoolExecutor(1) as thread:
            done = thread.submit(act)
            while not done.done():
                self.search.look()
                time.sleep(0.05)
            return done.result()

    def a_moment_at_work(self, address: str | None = None) -> Status:
        """A fresh status in which an evaluator, the one at an address if that is given, is in the
        middle of a task.
        """

        def fresh(status: Status) -> bool:
            busy = {place for place, evaluator in at_work(status).items() if evaluator["task"]}
            return time.time() - status["updated"] < 0.2 and (
                address in busy if address else bool(busy)
            )

        return self.search.until(
            f"an evaluator at work{f' on {address}' if address else ''}", fresh, SOON_S
        )

    def frozen_at_work(self, address: str) -> tuple[Status, Status]:
        """Stops an evaluator (SIGSTOP) in the middle of a task; returns a status from afterwards,
        which says exactly what is in flight, and the evaluator.

        One that had just answered is let go again.
        """
        while True:
            pid = at_work(self.a_moment_at_work(address))[address]["pid"]
            os.kill(pid, signal.SIGSTOP)
            since = time.time() + FREEZE_S
            status = self.search.until(
                f"news of {address}", lambda status, since=since: status["updated"] > since, SOON_S
            )  # type: ignore[misc]
            victim = at_work(status)[address]
            if victim["task"]:
                return status, victim
            os.kill(pid, signal.SIGCONT)

    def lose_evaluator(
        self, number: int, name: str, kind: str, act: Callable[[int], None] | None = None
    ) -> None:
        """Something happens to the evaluator on a node, which is replaced there."""
        address = self.workers[number].address
        self.traces.collect()
        when_s = self.story.now
        status, victim = self.frozen_at_work(address)
        if act is not None:
            act(victim["pid"])
            when_s = self.story.now
        row = Row(name, when_s, _in_flight(status, victim["number"]))
        self.story.tell(
            f"{name}: evaluator {victim['number']} on {address}, pid {victim['pid']}, at work on "
            f"{victim['task']}"
        )
        after = self.watch(
            row,
            noticed=lambda status: _count(status, kind) > 0,
            whole=lambda status: (
                len(at_work(status)) == NUM_NODES and victim["pid"] not in _pids(status)
            ),
        )
        assert (
            not psutil.pid_exists(victim["pid"])
            or psutil.Process(victim["pid"]).status() == psutil.STATUS_ZOMBIE
        ), "the lost process is still there"
        self.account(row, status, after)

    def account(self, row: Row, before: Status, after: Status) -> None:
        """What the search says that it lost: at most what was in flight."""
        lost = after["lost_evaluations"] - before["lost_evaluations"]
        new = [fault for fault in after["recent_faults"] if fault not in before["recent_faults"]]
        assert len(new) == 1, f"one fault was made, these were noticed: {new}"
        assert 0 <= lost <= int(row.in_flight), (
            f"{lost} evaluations were lost, {row.in_flight} were in flight"
        )
        row.lost = str(lost)
        row.notes.append(f"{new[0]['kind']}: {new[0]['decision']}")
        copied = after["speculative_tasks"] - before["speculative_tasks"]
        if copied:
            row.notes.append(f"{copied} late tasks done by another")


def test_a_search_survives_everything_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, new_token())
    reason = PostgresServer.missing()
    if reason is not None:
        pytest.skip(reason)
    story = Story()
    traces = Traces(f"{MARK}={os.environ[MARK]}")
    with scratch_folder(story) as folder:
        seconds = float(
            os.environ.get("MULTIPRUNER_CLUSTER_TEST_S") or 190 * min(NUM_NODES, _num_cores())
        )
        workload = make_workload(folder, seconds)
        story.tell(
            f"a search of {workload.batches} batches: about {workload.seconds:.0f} s for one "
            f"quiet core; this machine has {_num_cores()}"
        )
        with actors(folder, story, workload.options, traces) as (scene, alone):
            disturb(scene)
            compare(scene, alone)
        assert traces.num_ports > 10
        left = _eventually_none(traces.left)
        assert left == [], "something is left"
        story.tell(
            f"nothing is left: no process, none of {traces.num_ports} ports, no shared memory"
        )
    write(f"\n{story.table()}\n\nall of it took {story.now:.0f} s")


def disturb(scene: Scene) -> None:
    """One fault after the other, while the search goes on."""
    story, search = scene.story, scene.search
    search.start()
    story.tell(f"the search starts, pid {search.pid}")
    search.until(
        "three evaluators and two steps",
        lambda status: len(at_work(status)) == NUM_NODES and scene.search.num_steps() >= 2,
        LATE_S,
    )
    story.tell("three evaluators are at work")
    scene.traces.collect()

    scene.lose_evaluator(
        0, "1 evaluator killed", "evaluator lost", lambda pid: os.kill(pid, signal.SIGKILL)
    )
    scene.lose_evaluator(1, "2 evaluator stopped", "late")
    lose_node(scene)
    new_node(scene)
    lose_mlflow(scene)
    restart_postgres(scene)
    kill_driver(scene)

    story.tell(
        f"no more faults; {scene.search.num_steps()} steps are done, the search goes on to its end"
    )
    assert search.wait(900) == 0, search.tail()
    story.tell(f"the search is done: {scene.search.num_steps()} steps")


def lose_node(scene: Scene) -> None:
    victim = scene.workers[2]
    scene.traces.collect()
    status, evaluator = scene.frozen_at_work(victim.address)
    victim.kill()
    row = Row("3 node killed", scene.story.now, _in_flight(status, evaluator["number"]))
    scene.story.tell(
        f"{row.fault}: all processes of {victim.address}, its evaluator {evaluator['number']} at "
        f"work on {evaluator['task']}"
    )
    after = scene.watch(
        row,
        noticed=lambda status: _count(status, "node lost") > 0,
        whole=lambda status: len(at_work(status)) == NUM_NODES - 1,
    )
    scene.account(row, status, after)


def new_node(scene: Scene) -> None:
    row = Row("4 node added", scene.story.now, "-")
    scene.story.tell("4 a new node starts")
    node = scene.meanwhile(lambda: scene.nodes.add_node(environment=NODE))
    scene.traces.sessions.add(node.session)
    scene.story.tell(f"    {node.address} has joined")
    scene.watch(
        row,
        noticed=lambda status: (
            any(evaluator["state"] == "loading" for evaluator in status["evaluators"])
            or node.address in at_work(status)
        ),
        whole=lambda status: at_work(status).get(node.address, {}).get("num_tasks", 0) >= 3,
    )
    row.notes.append("its evaluator has done 3 tasks")


def lose_mlflow(scene: Scene) -> None:
    search, steps = scene.search, scene.search.num_steps()
    scene.traces.collect()
    scene.mlflow.kill()
    row = Row("5 MLflow away", scene.story.now, "-")
    scene.story.tell(f"{row.fault}: killed, for {MLFLOW_AWAY_S:.0f} s")
    until = time.monotonic() + MLFLOW_AWAY_S
    search.until(
        "noticed that MLflow is away",
        lambda status: status["tracking"].startswith("away"),
        MLFLOW_AWAY_S,
    )
    scene.story.tell("    noticed")
    row.noticed_s = scene.story.now - row.when_s
    status = search.until(
        "a minute without MLflow", lambda status: time.monotonic() > until, MLFLOW_AWAY_S + SOON_S
    )
    done = search.num_steps() - steps
    assert done >= 1, "no step was done while MLflow was away"
    scene.story.tell(
        f"    {done} steps were done meanwhile; the search says that MLflow is {status['tracking']}"
    )
    scene.meanwhile(scene.mlflow.start)
    scene.traces.sessions.add(scene.mlflow.session)
    restarted_s = scene.story.now - row.when_s
    scene.story.tell("    MLflow is back")
    scene.watch(row, whole=lambda status: not status["tracking"].startswith("away"))
    row.notes += [f"{done} steps meanwhile", f"back {restarted_s:.1f} s after the fault"]


def restart_postgres(scene: Scene) -> None:
    search, known = scene.search, len(scene.search.log())
    status = scene.a_moment_at_work()
    scene.traces.collect()
    scene.postgres.stop(immediate=True)
    row = Row("6 PostgreSQL restarts", scene.story.now, _in_flight(status))
    scene.story.tell(f"{row.fault}: stopped as by a crash")
    search.until(
        "noticed that the store is away",
        lambda status: "; trying again for up to" in search.log()[known:],
        SOON_S,
    )
    row.noticed_s = scene.story.now - row.when_s
    scene.story.tell("    noticed")
    scene.meanwhile(lambda: time.sleep(POSTGRES_AWAY_S))
    scene.meanwhile(scene.postgres.start)
    restarted_s = scene.story.now - row.when_s
    scene.story.tell("    PostgreSQL is back")
    after = scene.watch(row, whole=lambda status: ": back after" in search.log()[known:])
    row.notes.append(f"back {restarted_s:.1f} s after the fault")
    lost = after["lost_evaluations"] - status["lost_evaluations"]
    assert lost == 0, "a store that is away loses nothing"


def kill_driver(scene: Scene) -> None:
    """Afterwards the search has a second driver, started by the same command."""
    search, story = scene.search, scene.story
    status = scene.a_moment_at_work()
    first_pid = search.pid
    scene.traces.collect()
    search.kill()
    steps = search.num_steps()
    row = Row("7 driver killed", story.now, _in_flight(status))
    story.tell(f"{row.fault}: pid {first_pid}, after {steps} steps")
    _eventually(
        lambda: (
            scene.postgres.execute(
                f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{scene.database}'"
            )
            == [(0,)]
        ),
        "its transactions end",
    )
    scene.stored_at_kill = scene.num_stored()
    scene.status_at_kill = status
    assert scene.stored_at_kill >= status["evaluations"]["scored"], (
        "something was told before it was stored"
    )
    story.tell(
        f"    {scene.stored_at_kill} evaluations are stored; the driver had told of "
        f"{status['evaluations']['scored']} about a second before"
    )
    _eventually(lambda: not scene.evaluator_processes(), "evaluators end with their driver")
    gone_s = story.now - row.when_s
    story.tell("    its evaluators are gone")
    row.notes.append(f"evaluators gone after {gone_s:.1f} s")
    search.start()
    scene.traces.sessions.add(search.pid)
    story.tell(f"    the same command again, pid {search.pid}")
    scene.watch(row, whole=lambda status: len(at_work(status)) == NUM_NODES, stored=0)
    row.in_flight = f"about {row.in_flight}"  # the status is a second old at most
    row.lost = "those"
    assert f"going on after step {steps}, " in search.log()


def compare(scene: Scene, alone: Command) -> None:
    """The end of the search against one undisturbed process, the store, and MLflow."""
    story, folder = scene.story, scene.search.output_dir
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "target reached"
    assert scene.evaluator_processes() == [] or _eventually_none(scene.evaluator_processes) == []

    stored = scene.num_stored()
    scored = summary["evaluations"]["scored"]
    assert scored == stored - scene.stored_at_kill, "the second driver scored something again"
    story.tell(
        f"{stored} evaluations are stored; the second driver scored {scored}, which are those "
        f"that the first had not stored ({scene.stored_at_kill})"
    )
    check_losses(scene, summary)
    check_mlflow(scene, summary)

    if alone.is_running:
        story.tell(
            f"waiting for the undisturbed search in one process: {alone.num_steps()} steps are done"
        )
        alone.hurry()
    assert alone.wait(1200) == 0, alone.tail()
    assert without_times(folder / "trajectory.jsonl") == without_times(
        alone.output_dir / "trajectory.jsonl"
    )
    assert (folder / "shape.json").read_bytes() == (alone.output_dir / "shape.json").read_bytes()
    with sqlite3.connect(alone.output_dir.parent / "alone.db") as connection:
        theirs = connection.execute(_SCORES).fetchall()
    assert scene.postgres.execute(_SCORES, scene.database) == theirs
    story.tell(
        f"trajectory ({scene.search.num_steps()} steps), final shape and all {len(theirs)} "
        "scores are those of the undisturbed search, to the last byte"
    )


def check_losses(scene: Scene, summary: Mapping[str, Any]) -> None:
    first, second = scene.status_at_kill, summary
    kinds = Counter(first["faults"]) + Counter(second["faults"])
    assert kinds == {"evaluator lost": 1, "late": 1, "node lost": 1}
    lost = first["lost_evaluations"] + second["lost_evaluations"]
    in_flight = sum(int(row.in_flight) for row in scene.story.rows[:3])
    assert lost <= in_flight
    scene.story.tell(
        f"{lost} evaluations were lost with three evaluators, where {in_flight} were in flight; "
        f"the longest task seen has {scene.search.longest_task}"
    )


def check_mlflow(scene: Scene, summary: Mapping[str, Any]) -> None:
    """Every step exactly once, with the values of the journal."""
    client = MlflowClient(scene.mlflow.uri)
    [experiment] = [found for found in client.search_experiments() if found.name == "cluster-test"]
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == summary["tracking"]["run_id"]
    assert run.info.status == "FINISHED"
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert artifacts == set(ARTIFACTS)
    lines = [
        json.loads(line)
        for line in (scene.search.output_dir / "trajectory.jsonl").read_text().splitlines()
    ]
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in step_metrics(line).items():
            if value is not None:
                expected.setdefault(name, []).append((line["step"], float(value)))
    for name, points in expected.items():
        history = sorted(
            (metric.step, metric.value)
            for metric in client.get_metric_history(run.info.run_id, name)
        )
        if name in (
            "prune/perplexity",
            "prune/nll",
            "prune/ratio",
            "prune/num_parameters",
            "prune/flops_per_token",
        ):
            assert history[0][0] == 0, f"{name}: the dense model is missing"
            history = history[1:]
        assert history == points, name
    [dense] = [
        metric.value
        for metric in client.get_metric_history(run.info.run_id, "prune/perplexity")
        if metric.step == 0
    ]
    assert dense == summary["perplexity"]["block"]["dense"]
    scene.story.tell(
        f"MLflow: one run, finished, steps 0 to {len(lines)} once each with the journal's "
        f"values, {len(artifacts)} artifacts"
    )


@contextmanager
def scratch_folder(story: Story) -> Iterator[Path]:
    """In /tmp, for the length of Unix sockets; PostgreSQL's own user may pass through it. It stays
    after a failure.
    """
    folder = Path(tempfile.mkdtemp(prefix="multipruner-cluster-", dir="/tmp"))
    folder.chmod(0o711)
    story.tell(f"everything is in {folder}")
    try:
        yield folder
    except BaseException:
        write(f"\n{story.table()}\nkept: {folder}; Ray's logs are in {folder / 'ray'}")
        raise
    shutil.rmtree(folder)


@contextmanager
def actors(
    folder: Path, story: Story, options: tuple[str, ...], traces: Traces
) -> Iterator[tuple[Scene, Command]]:
    """Servers, cluster, and two searches: the one to be disturbed, not started yet, and the
    undisturbed one, which gives way to everything else.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_")
    } | {"TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"}
    own = (
        f"store.url=sqlite:///{folder}/alone.db",
        f"tracking.uri=sqlite:///{folder}/alone-mlflow.db",
    )
    alone = Command((*options, "cluster=inline", *own), environment, folder / "alone", idle=True)
    search: Command | None = None
    try:
        alone.start()
        traces.sessions.add(alone.pid)
        story.tell(
            f"the undisturbed search starts in one process, pid {alone.pid}, with what the "
            "others leave of the machine"
        )
        with (
            PostgresServer(folder / "postgres") as postgres,
            MlflowServer(folder / "mlflow") as mlflow,
            RayNodes(folder / "ray", new_token()) as nodes,
        ):
            url = postgres.new_database()
            story.tell(f"PostgreSQL listens on port {postgres.port}, MLflow on {mlflow.port}")
            nodes.start_head()
            workers = [nodes.add_node(environment=NODE) for _ in range(NUM_NODES)]
            traces.sessions |= {mlflow.session, *(node.session for node in nodes.nodes)}
            story.tell(
                f"a Ray cluster at {nodes.address} with {NUM_NODES} worker nodes: "
                f"{', '.join(node.address for node in workers)}"
            )
            search = Command(
                (
                    *options,
                    "cluster=ray",
                    f"cluster.address={nodes.address}",
                    "cluster.num_gpus_per_evaluator=0",
                    f"cluster.task_timeout_s={TASK_TIMEOUT_S:g}",
                    "store=postgresql",
                    f"tracking.uri={mlflow.uri}",
                    "tracking.experiment=cluster-test",
                ),
                nodes.environment
                | {"TMPDIR": str(folder), "HF_HUB_OFFLINE": "1", "MULTIPRUNER_STORE_URL": url},
                folder / "search",
            )
            try:
                yield (
                    Scene(
                        story,
                        search,
                        nodes,
                        workers,
                        postgres,
                        str(make_url(url).database),
                        mlflow,
                        traces,
                    ),
                    alone,
                )
            except BaseException:
                write(search.tail())
                raise
            finally:
                traces.collect()
                search.kill()
    finally:
        alone.kill()


def _count(status: Status, kind: str) -> int:
    return int(status.get("faults", {}).get(kind, 0))


def _pids(status: Status) -> set[int]:
    return {evaluator["pid"] for evaluator in at_work(status).values()}


def _in_flight(status: Status, number: int | None = None) -> str:
    """Candidates, of one evaluator or of all."""
    sizes = tasks_in_flight(status)
    return str(sizes.get(number, 0) if number is not None else sum(sizes.values()))


def _title(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def _eventually(condition: Callable[[], object], what: str, timeout_s: float = SOON_S) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.1)


def _eventually_none(listed: Callable[[], list[Any]], timeout_s: float = 30.0) -> list[Any]:
    until = time.monotonic() + timeout_s
    while (found := listed()) and time.monotonic() < until:
        time.sleep(0.5)
    return found
