"""Sweeps of allocations: what seven targets measure together, counted in the store and in the work
of the evaluators.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli
from tests.pipelines.sweep.conftest import Sweep
from workers.pool.inline_pool import InlinePool
from workers.tasks import ScoreTask, StatisticsTask

RATIOS = (0.06, 0.08, 0.10, 0.12, 0.14, 0.16, 0.18)
ALLOCATION = ("search=allocation", "search.distribution=[0,1,1]", "search.mlp_group_channels=8")
SEVEN = f"search.target_ratio=[{','.join(map(str, RATIOS))}]"
SHARED = "search.table_ratio=0.12"


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Tasks that evaluators did, by kind; of scores, shapes on each batch."""
    counted: Counter[str] = Counter()
    original = InlinePool.run

    def run(self: InlinePool, tasks: Sequence[object]) -> Iterable[object]:
        for task in tasks:
            if isinstance(task, ScoreTask):
                counted[task.kind] += len(task.candidates)
            elif isinstance(task, StatisticsTask):
                counted["statistics"] += 1
        return original(self, tasks)  # type: ignore[arg-type]

    monkeypatch.setattr(InlinePool, "run", run)
    return counted


def points(outcome: Outcome) -> list[Path]:
    return [outcome.folder / f"target_ratio_{ratio:g}" for ratio in RATIOS]


def allocation(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "allocation.json").read_text())
    return found


def own_shapes(folder: Path) -> set[str]:
    """What a point measures of its own: its solutions, and the uniform shape of its target."""
    found = json.loads((folder / "allocation.json").read_text())
    return {found["start"]} | {each["shape"] for each in found["rounds"][0]["solutions"]}


def divergences_in(store: Path) -> int:
    """Shapes that were scored by KL."""
    with closing(sqlite3.connect(store)) as database:
        rows = database.execute(
            "select count(distinct shape) from scores join contexts on context = digest "
            """where description like '%"kind": "kl"%'"""
        )
        return int(rows.fetchone()[0])


@pytest.fixture
def together(run_sweep: Sweep, tasks: Counter[str]) -> Outcome:
    outcome = run_sweep(*ALLOCATION, SEVEN, SHARED)
    assert outcome.status == 0, outcome.output
    return outcome


def test_seven_targets_measure_one_table(
    together: Outcome, tasks: Counter[str], tmp_path: Path, run_sweep: Sweep
) -> None:
    """Their own solutions aside, no more than one target alone: not even 1.2 times as much."""
    seven, own = divergences_in(tmp_path / "scores.db"), set[str]()
    for folder in points(together):
        own |= own_shapes(folder)
    assert tasks["statistics"] == 1
    assert tasks["kl"] == 2 * seven, "each shape once, on two batches"
    tasks.clear()
    alone = run_sweep(
        *ALLOCATION, SHARED, "search.target_ratio=0.12", f"store.url=sqlite:///{tmp_path}/b.db",
        command="prune", folder="alone",
    )  # fmt: skip
    assert alone.status == 0, alone.output
    one = divergences_in(tmp_path / "b.db")
    assert one >= 15
    assert seven - len(own) <= 1.2 * (one - len(own_shapes(alone.folder)))
    assert tasks["statistics"] == 1


def test_points_are_the_same_as_alone(together: Outcome, run_sweep: Sweep, tmp_path: Path) -> None:
    """The table, the order and the statistics are shared; the bytes are those of a run alone."""
    alone = run_sweep(
        *ALLOCATION, SHARED, "search.target_ratio=0.18", f"store.url=sqlite:///{tmp_path}/b.db",
        command="prune", folder="alone",
    )  # fmt: skip
    names = ("allocation.json", "shape.json", "channel_order.safetensors", "statistics.safetensors")
    for name in names:
        assert (points(together)[-1] / name).read_bytes() == (alone.folder / name).read_bytes()


def test_every_point_has_its_own_solution_and_is_no_worse_than_uniform(
    together: Outcome, tmp_path: Path
) -> None:
    found = [allocation(folder) for folder in points(together)]
    rows = together.read("sweep.json")["points"]
    for row, each in zip(rows, found, strict=True):
        needed = row["evaluations"]["stages"]["block"]["needed"]
        assert needed == 2 * each["num_shapes"]
    new = together.read("sweep.json")["evaluations"]["block"]["new"]
    assert new == 2 * divergences_in(tmp_path / "scores.db")
    assert all(row["ratio"] >= ratio for row, ratio in zip(rows, RATIOS, strict=True))
    assert len({each["shape"] for each in found}) == len(RATIOS)
    assert len({each["start"] for each in found}) == len(RATIOS)
    assert all(each["kl"] <= each["start_kl"] for each in found)
    bases = {each["rounds"][0]["base"] for each in found}
    assert len(bases) == 1
    assert all(len(each["rounds"]) == 1 for each in found)


def test_without_a_shared_table_each_target_has_its_own(
    run_sweep: Sweep, tasks: Counter[str]
) -> None:
    """The default: rounds around each target's own uniform shape; the order is still made once."""
    outcome = run_sweep(*ALLOCATION, "search.target_ratio=[0.08,0.16]")
    assert outcome.status == 0, outcome.output
    starts = set()
    for ratio in (0.08, 0.16):
        found = json.loads((outcome.folder / f"target_ratio_{ratio:g}/allocation.json").read_text())
        assert found["rounds"][0]["base"] == found["start"]
        starts.add(found["start"])
    assert len(starts) == 2
    assert tasks["statistics"] == 1


def test_points_with_other_text_do_not_share_an_order(
    run_sweep: Sweep, tasks: Counter[str]
) -> None:
    outcome = run_sweep(
        *ALLOCATION, "search.target_ratio=0.12", "calibration.num_width_samples=[4,6]"
    )
    assert outcome.status == 0, outcome.output
    assert tasks["statistics"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (
                "search.distribution=[0,1,0]",
                "search.target_ratio=0.18",
                "search.table_ratio=0.01",
            ),
            "search.table_ratio: 0.01; what is measured around the uniform shape of that ratio",
        ),
        (("search.table_ratio=10",), "search.table_ratio: 10; it is removed / all parameters"),
        (
            ("search=uniform", "search.table_ratio=0.1"),
            "search.table_ratio: 0.1, which has no effect with search.strategy=uniform",
        ),
    ],
)
def test_bad_input(cli: Cli, arguments: list[str], words: tuple[str, ...], message: str) -> None:
    outcome = cli("prune", *arguments, *ALLOCATION, *words)
    assert outcome.status == 2, outcome.output
    assert message in outcome.output


def test_a_table_of_another_ratio_is_part_of_the_identity(together: Outcome) -> None:
    identity = json.loads((points(together)[0] / "run.json").read_text())["identity"]
    assert identity["search.table_ratio"] == 0.12


def test_the_plan_of_a_shared_table_holds(
    together: Outcome, base: list[str], cli: Cli, tmp_path: Path
) -> None:
    """Of tables of their own, the sum."""
    shared, apart = (
        cli("plan", *base, *ALLOCATION, SEVEN, *words, folder="plan").read("plan.json")
        for words in ((SHARED,), ())
    )
    evaluations = shared["evaluations"]["block"]
    assert evaluations["min"] == shared["points"][0]["evaluations"]["block"]["min"]
    assert evaluations["min"] <= divergences_in(tmp_path / "scores.db") <= evaluations["max"]
    own = [each["evaluations"]["block"]["max"] for each in apart["points"]]
    assert apart["evaluations"]["block"]["max"] == sum(own)
