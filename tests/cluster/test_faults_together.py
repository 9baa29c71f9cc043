"""`make cluster-test`: a search on a Ray cluster of several nodes, with PostgreSQL and an MLflow
server, and everything that can go away goes away. `make short-tiers` has a shorter one.

What must come out is what one undisturbed process comes to: the same trajectory to the last byte,
and the same scores in the store. Needs PostgreSQL. All is in one folder, which stays after a
failure.

MULTIPRUNER_CLUSTER_TEST_S makes a search longer or shorter: the seconds that one core is busy
with it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tests.cluster.command import Command
from tests.cluster.faults import (
    ALL,
    Fault,
    disturb,
    driver_killed,
    node_killed,
    postgres_restarts,
)
from tests.cluster.mlflow_server import MlflowServer
from tests.cluster.outcome import compare
from tests.cluster.scene import NODE, Scene, eventually_none
from tests.cluster.story import Story, write
from tests.cluster.traces import Traces
from tests.cluster.workload import make_workload
from tests.postgres import PostgresServer
from tests.ray_nodes import RayNodes, new_token

TASK_TIMEOUT_S = 20.0
MARK = "MULTIPRUNER_CLUSTER_TEST_MARK"


@pytest.fixture(autouse=True)
def _mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment of every process that is ours."""
    monkeypatch.setenv(MARK, new_token())


@pytest.mark.cluster
@pytest.mark.timeout(2400)
def test_a_search_survives_everything_that_goes_away() -> None:
    """About ten minutes on two quiet cores."""
    survive(ALL, num_nodes=3, seconds=190.0 * min(3, _num_cores()))


@pytest.mark.short_tier
@pytest.mark.timeout(1200)
def test_a_search_survives_a_node_its_store_and_its_driver() -> None:
    survive(
        (node_killed, postgres_restarts, driver_killed),
        num_nodes=2,
        seconds=65.0 * min(2, _num_cores()),
    )


def survive(faults: Sequence[Fault], *, num_nodes: int, seconds: float) -> None:
    """A search that keeps one core busy for so many seconds, with these faults."""
    reason = PostgresServer.missing()
    if reason is not None:
        pytest.skip(reason)
    story = Story()
    traces = Traces(f"{MARK}={os.environ[MARK]}")
    with scratch_folder(story) as folder:
        workload = make_workload(
            folder, float(os.environ.get("MULTIPRUNER_CLUSTER_TEST_S") or seconds)
        )
        story.tell(
            f"a search of {workload.batches} batches: about {workload.seconds:.0f} s for one "
            f"quiet core; this machine has {_num_cores()}"
        )
        with (
            undisturbed(folder, story, workload.options, traces) as alone,
            cluster(folder, story, workload.options, traces, num_nodes) as scene,
        ):
            disturb(scene, faults)
            compare(scene, alone)
        assert traces.num_ports > 10
        left = eventually_none(traces.left)
        assert left == [], "something is left"
        story.tell(
            f"nothing is left: no process, none of {traces.num_ports} ports, no shared memory"
        )
    write(f"\n{story.table()}\n\nall of it took {story.now:.0f} s")


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
def undisturbed(
    folder: Path, story: Story, options: tuple[str, ...], traces: Traces
) -> Iterator[Command]:
    """The same search in one process, which gives way to everything else; started already."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_")
    } | {"TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"}
    own = (
        f"store.url=sqlite:///{folder}/alone.db",
        f"tracking.uri=sqlite:///{folder}/alone-mlflow.db",
    )
    alone = Command((*options, "cluster=inline", *own), environment, folder / "alone", idle=True)
    try:
        alone.start()
        traces.sessions.add(alone.pid)
        story.tell(
            f"the undisturbed search starts in one process, pid {alone.pid}, with what the "
            "others leave of the machine"
        )
        yield alone
    finally:
        alone.kill()


@contextmanager
def cluster(
    folder: Path, story: Story, options: tuple[str, ...], traces: Traces, num_nodes: int
) -> Iterator[Scene]:
    """Servers, a Ray cluster, and the search to be disturbed, which is not started yet."""
    with (
        PostgresServer(folder / "postgres") as postgres,
        MlflowServer(folder / "mlflow") as mlflow,
        RayNodes(folder / "ray", new_token()) as nodes,
    ):
        url = postgres.new_database()
        story.tell(f"PostgreSQL listens on port {postgres.port}, MLflow on {mlflow.port}")
        nodes.start_head()
        workers = [nodes.add_node(environment=NODE) for _ in range(num_nodes)]
        traces.sessions |= {mlflow.session, *(node.session for node in nodes.nodes)}
        story.tell(
            f"a Ray cluster at {nodes.address} with {num_nodes} worker nodes: "
            f"{', '.join(node.address for node in workers)}"
        )
        search = Command(
            (*options, *_cluster_options(nodes.address, mlflow.uri)),
            nodes.environment
            | {"TMPDIR": str(folder), "HF_HUB_OFFLINE": "1", "MULTIPRUNER_STORE_URL": url},
            folder / "search",
        )
        database = str(make_url(url).database)
        scene = Scene(story, search, nodes, workers, postgres, database, mlflow, traces, num_nodes)
        try:
            yield scene
        except BaseException:
            write(search.tail())
            raise
        finally:
            traces.collect()
            search.kill()


def _cluster_options(address: str, tracking_uri: str) -> tuple[str, ...]:
    return (
        "cluster=ray",
        f"cluster.address={address}",
        "cluster.num_gpus_per_evaluator=0",
        f"cluster.task_timeout_s={TASK_TIMEOUT_S:g}",
        "store=postgresql",
        f"tracking.uri={tracking_uri}",
        "tracking.experiment=cluster-test",
    )


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))
