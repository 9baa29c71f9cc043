"""What `plan` knows of time: a rate that is given, measured, or missing for a reason."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli
from tests.tiny_search import tiny_search
from workers.cluster.machine import LocalMachine
from workers.evaluators import rate
from workers.evaluators.rate import MeasuredRate

GIVE = "give tflops_per_evaluator= or rate_of="
ALONE = "time: 0.5 TFLOP/s, measured here in 4 s, alone"


@pytest.fixture
def options(checkpoint_folder: Path, token_file: Path) -> list[str]:
    return [*tiny_search(checkpoint_folder, token_file), "measure_rate=true"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Of what measures, which then says the same each time."""
    found: list[dict[str, Any]] = []

    def measure(_config: object, _accounting: object, dtype: str, **given: Any) -> MeasuredRate:
        found.append({"dtype": dtype, **given})
        return MeasuredRate(0.5, 4.2, given["batch_size"], given["sequence_length"])

    monkeypatch.setattr(rate, "measure_rate", measure)
    return found


def said(outcome: Outcome) -> str:
    """Without the lines of the table."""
    assert outcome.status == 0, outcome.output
    return " ".join(outcome.output.replace("│", " ").split())


def test_measured_with_the_work_of_the_search(
    cli: Cli, options: list[str], calls: list[dict[str, Any]]
) -> None:
    words = ("cluster.num_gpus=0", "cluster.num_cpus_per_evaluator=1", "cluster.num_evaluators=2")
    outcome = cli("plan", *options, *words)
    assert "rate of an evaluator 0.5 TFLOP/s, measured here in 4 s, alone" in said(outcome)
    assert calls == [
        {
            "dtype": "float32",
            "num_threads": 1,
            "num_gpus": 0,
            "batch_size": 4,
            "sequence_length": 32,
        }
    ]
    plan = outcome.read("plan.json")
    assert plan["rate"] == {
        "source": "measured",
        "tflops": 0.5,
        "seconds": 4.2,
        "num_sequences": 4,
        "sequence_length": 32,
    }
    assert plan["hours"] == pytest.approx(plan["flops"] / (2 * 0.5e12 * 3600))


def test_on_a_gpu_where_evaluators_get_some(
    cli: Cli, options: list[str], calls: list[dict[str, Any]]
) -> None:
    assert (
        cli("plan", *options, "cluster.num_gpus=4", "cluster.num_gpus_per_evaluator=2").status == 0
    )
    assert [call["num_gpus"] for call in calls] == [1], "a model on several runs on one at a time"


def test_once_for_points_with_the_same_work(
    cli: Cli, options: list[str], calls: list[dict[str, Any]]
) -> None:
    ratios = "search.target_ratio=[0.1,0.25]"
    assert ALONE in said(cli("plan", *options, ratios))
    assert len(calls) == 1
    outcome = cli("plan", *options, ratios, "calibration.batch_size=[2,8]", folder="more")
    assert said(outcome).count(ALONE) == 1
    assert [call["batch_size"] for call in calls[1:]] == [2, 8]


def test_nothing_is_measured_before_all_points_are_checked(
    cli: Cli, options: list[str], calls: list[dict[str, Any]]
) -> None:
    assert cli("plan", *options, "search.target_ratio=[0.1,0.97]").status == 2
    assert calls == []


def test_what_is_given_is_not_measured(
    cli: Cli, options: list[str], calls: list[dict[str, Any]]
) -> None:
    outcome = cli("plan", *options, "tflops_per_evaluator=0.001")
    assert "rate of an evaluator 0.001 TFLOP/s, given" in said(outcome)
    assert outcome.read("plan.json")["rate"] == {"source": "given", "tflops": 0.001}
    assert calls == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["cluster=ray", "cluster.address=head:6379"], f"a cluster is not asked: {GIVE}"),
        (["measure_rate=false"], f"not measured: {GIVE}"),
    ],
    ids=["cluster", "off"],
)
def test_why_there_is_none(
    cli: Cli, options: list[str], calls: list[dict[str, Any]], words: list[str], reason: str
) -> None:
    outcome = cli("plan", *options, *words)
    assert reason in said(outcome)
    plan = outcome.read("plan.json")
    assert (plan["rate"], plan["hours"]) == (
        {"source": None, "tflops": None, "reason": reason},
        None,
    )
    swept = cli("plan", *options, *words, "search.target_ratio=[0.1,0.25]", folder="all")
    assert said(swept).count(f"time: {reason}") == 1
    assert calls == []


def test_a_layer_that_memory_has_no_room_for(
    cli: Cli, options: list[str], calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def detect(*, num_gpus: int | None) -> LocalMachine:
        return LocalMachine(2, num_gpus or 0, 10**6)

    monkeypatch.setattr(LocalMachine, "detect", detect)
    outcome = cli("plan", *options)
    assert f"of memory, 1 MB are free: {GIVE}" in said(outcome)
    assert calls == []
    assert cli("plan", *options, "cluster.num_gpus=1", folder="gpu").status == 0
    assert len(calls) == 1, "memory of a GPU is not known before it is used"


def test_a_layer_that_cannot_be_run(
    cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    monkeypatch.setattr(rate, "measure_rate", fail)
    reason = f"a layer cannot be run here (no kernel image is available): {GIVE}"
    assert reason in said(cli("plan", *options))


def test_from_end_to_end(cli: Cli, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the smallest run alone."""
    monkeypatch.setattr(rate, "measure_rate", partial(rate.measure_rate, seconds=0))
    found = cli("plan", *options).read("plan.json")
    assert found["rate"]["source"] == "measured"
    assert found["hours"] > 0
