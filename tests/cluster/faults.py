"""What goes away while a search goes on, one thing after the other."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence

import psutil

from tests.cluster.command import Status, at_work, tasks_in_flight
from tests.cluster.scene import LATE_S, NODE, SOON_S, Scene, eventually
from tests.cluster.story import Row
from workers.pool.faults import FaultKind

MLFLOW_AWAY_S = 60.0
POSTGRES_AWAY_S = 5.0

Fault = Callable[[Scene, str], None]
"""Brings something down, and follows the search until all is back; takes its name in the table."""


def disturb(scene: Scene, faults: Sequence[Fault]) -> None:
    """One fault after the other, while the search goes on."""
    story, search = scene.story, scene.search
    search.start()
    story.tell(f"the search starts, pid {search.pid}")
    search.until(
        f"{scene.num_alive} evaluators and two steps",
        lambda status: len(at_work(status)) == scene.num_alive and search.num_steps() >= 2,
        LATE_S,
    )
    story.tell(f"{scene.num_alive} evaluators are at work")
    scene.traces.collect()
    for number, fault in enumerate(faults, 1):
        fault(scene, f"{number} {fault.__name__.replace('_', ' ')}")
    story.tell(f"no more faults; {search.num_steps()} steps are done, the search goes on")
    assert search.wait(900) == 0, search.tail()
    story.tell(f"the search is done: {search.num_steps()} steps")


def evaluator_killed(scene: Scene, name: str) -> None:
    _lose_evaluator(scene, 0, name, "evaluator lost", lambda pid: os.kill(pid, signal.SIGKILL))


def evaluator_stopped(scene: Scene, name: str) -> None:
    """SIGSTOP: nobody reports it, it just never answers."""
    _lose_evaluator(scene, 1, name, "late")


def _lose_evaluator(
    scene: Scene,
    number: int,
    name: str,
    kind: FaultKind,
    act: Callable[[int], None] | None = None,
) -> None:
    """Something happens to the evaluator on a node, which is replaced there."""
    address = scene.workers[number].address
    scene.traces.collect()
    when_s = scene.story.now
    status, victim = scene.frozen_at_work(address)
    if act is not None:
        act(victim["pid"])
        when_s = scene.story.now
    row = Row(name, when_s, _in_flight(status, victim["number"]), kind)
    scene.story.tell(
        f"{name}: evaluator {victim['number']} on {address}, pid {victim['pid']}, at work on "
        f"{victim['task']}"
    )
    after = scene.watch(
        row,
        noticed=lambda status: _count(status, kind) > 0,
        whole=lambda status: (
            len(at_work(status)) == scene.num_alive and victim["pid"] not in _pids(status)
        ),
    )
    assert not _lives(victim["pid"]), "the lost process is still there"
    scene.account(row, status, after)


def node_killed(scene: Scene, name: str) -> None:
    """The last one, with all its processes."""
    victim = scene.workers[-1]
    scene.traces.collect()
    status, evaluator = scene.frozen_at_work(victim.address)
    victim.kill()
    scene.num_alive -= 1
    row = Row(name, scene.story.now, _in_flight(status, evaluator["number"]), "node lost")
    scene.story.tell(
        f"{row.fault}: all processes of {victim.address}, its evaluator {evaluator['number']} at "
        f"work on {evaluator['task']}"
    )
    after = scene.watch(
        row,
        noticed=lambda status: _count(status, "node lost") > 0,
        whole=lambda status: len(at_work(status)) == scene.num_alive,
    )
    scene.account(row, status, after)


def node_added(scene: Scene, name: str) -> None:
    row = Row(name, scene.story.now, "-")
    scene.story.tell(f"{name}: a new node starts")
    node = scene.meanwhile(lambda: scene.nodes.add_node(environment=NODE))
    scene.traces.sessions.add(node.session)
    scene.workers.append(node)
    scene.num_alive += 1
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


def mlflow_away(scene: Scene, name: str) -> None:
    search, steps = scene.search, scene.search.num_steps()
    scene.traces.collect()
    scene.mlflow.kill()
    row = Row(name, scene.story.now, "-")
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


def postgres_restarts(scene: Scene, name: str) -> None:
    search, known = scene.search, len(scene.search.log())
    status = scene.a_moment_at_work()
    scene.traces.collect()
    scene.postgres.stop(immediate=True)
    row = Row(name, scene.story.now, _in_flight(status))
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


def driver_killed(scene: Scene, name: str) -> None:
    """Afterwards the search has a second driver, started by the same command."""
    search, story = scene.search, scene.story
    status = scene.a_moment_at_work()
    first_pid = search.pid
    scene.traces.collect()
    search.kill()
    steps = search.num_steps()
    row = Row(name, story.now, _in_flight(status))
    story.tell(f"{row.fault}: pid {first_pid}, after {steps} steps")
    eventually(
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
    eventually(lambda: not scene.evaluator_processes(), "evaluators end with their driver")
    gone_s = story.now - row.when_s
    story.tell("    its evaluators are gone")
    row.notes.append(f"evaluators gone after {gone_s:.1f} s")
    search.start()
    scene.traces.sessions.add(search.pid)
    story.tell(f"    the same command again, pid {search.pid}")
    scene.watch(row, whole=lambda status: len(at_work(status)) == scene.num_alive, stored=0)
    row.in_flight = f"about {row.in_flight}"  # the status is a second old at most
    row.lost = "those"
    assert f"going on after step {steps}, " in search.log()


def _count(status: Status, kind: str) -> int:
    return int(status.get("faults", {}).get(kind, 0))


def _pids(status: Status) -> set[int]:
    return {evaluator["pid"] for evaluator in at_work(status).values()}


def _in_flight(status: Status, number: int | None = None) -> str:
    """Candidates, of one evaluator or of all."""
    sizes = tasks_in_flight(status)
    return str(sizes.get(number, 0) if number is not None else sum(sizes.values()))


def _lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


ALL: tuple[Fault, ...] = (
    evaluator_killed,
    evaluator_stopped,
    node_killed,
    node_added,
    mlflow_away,
    postgres_restarts,
    driver_killed,
)
