"""`recover plan=true`: what a recovery would take, and nothing is written."""

from __future__ import annotations

import json
import re

import pytest

from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli
from tests.pipelines.recover.conftest import QUICK, WHOLE, Recover


def cells(outcome: Outcome) -> dict[str, str]:
    """Of the table."""
    assert outcome.status == 0, outcome.output
    lines = [line.split("│") for line in outcome.output.splitlines() if line.count("│") == 3]
    return {name.strip(): value.strip() for _, name, value, _ in lines}


def test_a_plan_has_the_numbers_of_the_line_before_the_start(
    recover: Recover, ended: Outcome
) -> None:
    before = sorted(ended.folder.rglob("*"))
    planned = recover("plan=true", folder="planned")
    assert not planned.folder.exists()
    assert sorted(ended.folder.rglob("*")) == before
    assert "recovery of tiny-llama, 49,584 parameters, 27.1% removed: at most" in planned.output
    found = cells(planned)
    assert (found["updates"], found["tokens"]) == ("12", "1,536")
    outcome = recover()
    assert outcome.status == 0, outcome.output
    line = re.search(
        r"at most (.*) tokens, (.*) of memory, (.*) FLOPs, (.*) at the rate of an evaluator of the",
        outcome.output,
    )
    assert line is not None
    memory = found["memory (float32)"]
    assert line.groups() == (found["tokens"], memory, found["FLOPs"], found["time"])


def test_the_rate_is_that_of_the_search(recover: Recover, ended: Outcome) -> None:
    path = ended.folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["taken"]["tflops_per_evaluator"] = 1e-6
    path.write_text(json.dumps(summary))
    found = cells(recover("plan=true"))
    assert found["rate"] == "1e-06 TFLOP/s, as an evaluator of the search had"
    assert re.fullmatch(r"\d+ min \d\d s", found["time"])
    summary["taken"]["tflops_per_evaluator"] = None
    path.write_text(json.dumps(summary))
    found = cells(recover("plan=true"))
    assert "rate" not in found
    assert found["time"] == "said with each checkpoint, as there is no rate of a search"


def test_a_plan_is_checked_as_the_recovery(cli: Cli, ended: Outcome) -> None:
    outcome = cli("recover", f"run={ended.folder}", *QUICK, "recovery.rank=17", "plan=true")
    assert outcome.status == 2
    assert outcome.errors[0].startswith("error: recovery.rank: 17, above the narrowest matrix")


def test_whole_matrices_take_more(recover: Recover) -> None:
    """Memory, and a gradient of every weight of the blocks."""
    adapters, whole = cells(recover("plan=true")), cells(recover(*WHOLE, "plan=true"))
    memory, flops = "memory (float32)", "FLOPs"
    assert float(whole[flops]) / float(adapters[flops]) == pytest.approx(1.2, abs=0.1)
    less, more = (float(each[memory].removesuffix(" MB")) for each in (adapters, whole))
    assert less < more


def test_no_cluster_is_joined(recover: Recover, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is busy, or not there yet."""

    def refuse(*_: object) -> None:
        raise AssertionError("joined")

    monkeypatch.setattr("pipelines.recover.command.joined", refuse)
    words = ("cluster=ray", "cluster.address=nowhere:1", "cluster.num_gpus_per_evaluator=0")
    assert cells(recover(*words, "plan=true"))["updates"] == "12"


def test_processes_share_the_parts_of_an_update(recover: Recover, ended: Outcome) -> None:
    """Two of three sequences and one; what each keeps until the other has its own is memory."""
    path = ended.folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["taken"]["tflops_per_evaluator"] = 1e-6
    path.write_text(json.dumps(summary))
    plans = {
        count: cells(
            recover(*WHOLE, "plan=true", "cluster=local", f"cluster.num_evaluators={count}")
        )
        for count in (1, 2)
    }
    assert "trained by" not in plans[1]
    assert plans[2]["trained by"] == "2 processes"
    assert plans[2]["FLOPs"] == plans[1]["FLOPs"]
    assert seconds(plans[1]["time"]) == pytest.approx(2 * seconds(plans[2]["time"]), abs=1)
    alone, each = plans[1]["memory (float32)"], plans[2]["memory of each (float32)"]
    assert megabytes(each) > megabytes(alone)
    words = ("cluster=ray", "cluster.address=nowhere:1", "cluster.num_gpus_per_evaluator=0")
    assert cells(recover("plan=true", *words))["trained by"] == "as many processes as fit, up to 2"


def megabytes(shown: str) -> float:
    number, unit = shown.split()
    assert unit == "MB"
    return float(number)


def seconds(shown: str) -> int:
    """Of "12 min 03 s", in seconds."""
    found = re.fullmatch(r"(\d+) min (\d\d) s", shown)
    assert found is not None, shown
    return 60 * int(found[1]) + int(found[2])
