"""A run goes on with the device, threads and versions that it was begun with, or says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.runs.arithmetic import claim_arithmetic
from pipelines.runs.folder import RunFolder
from pruning.errors import InputError
from pruning.scoring.arithmetic import Arithmetic
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Search

HERE = Arithmetic(device="cpu AVX2", num_threads=1, torch="2.13.0")
THERE = Arithmetic(device="cuda X", num_threads=2, torch="2.14.0")


def claimed(path: Path, arithmetic: Arithmetic, num_steps: int, *, accept: bool = False) -> Any:
    with RunFolder(str(path)) as folder:
        folder.claim({"model": "m"})
        return claim_arithmetic(folder, arithmetic, num_steps=num_steps, accept=accept)


def test_the_first_process_records_it(tmp_path: Path) -> None:
    spans = claimed(tmp_path, HERE, 0)
    assert spans == [{"from_step": 1} | HERE.to_json()]
    assert json.loads((tmp_path / "run.json").read_text())["arithmetic"] == spans
    assert claimed(tmp_path, HERE, 3) == spans


def test_a_difference_is_refused_field_by_field(tmp_path: Path) -> None:
    claimed(tmp_path, HERE, 0)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(InputError) as caught:
        claimed(tmp_path, THERE, 3)
    said = str(caught.value)
    assert said.startswith(f"output_dir: the steps in {tmp_path} were computed otherwise")
    for words in (
        "device: cpu AVX2 there, cuda X here",
        "num_threads: 1 there, 2 here",
        "torch: 2.13.0 there, 2.14.0 here",
        "accept_other_arithmetic=true",
    ):
        assert words in said
    assert "transformers" not in said
    assert (tmp_path / "run.json").read_bytes() == before


def test_an_accepted_difference_is_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [first] = claimed(tmp_path, HERE, 0)
    spans = claimed(tmp_path, THERE, 3, accept=True)
    assert spans == [first, {"from_step": 4} | THERE.to_json()]
    assert "from step 4 on, scores are computed otherwise than before: device: " in caplog.text
    assert claimed(tmp_path, THERE, 5) == spans
    with pytest.raises(InputError, match="device: cuda X there, cpu AVX2 here"):
        claimed(tmp_path, HERE, 6)


def test_what_no_step_was_computed_with_counts_for_nothing(tmp_path: Path) -> None:
    claimed(tmp_path, HERE, 0)
    spans = claimed(tmp_path, THERE, 0)
    assert spans == [{"from_step": 1} | THERE.to_json()]
    both = claimed(tmp_path, HERE, 3, accept=True)
    assert len(both) == 2
    assert claimed(tmp_path, THERE, 3) == spans, "it was stopped before its step"
    assert json.loads((tmp_path / "run.json").read_text())["arithmetic"] == spans


def test_what_an_allocation_was_measured_with_counts(tmp_path: Path) -> None:
    spans = claimed(tmp_path, HERE, 0)
    (tmp_path / "allocation.json").write_text("{}")
    assert claimed(tmp_path, HERE, 0) == spans
    with pytest.raises(InputError, match="device: cpu AVX2 there, cuda X here"):
        claimed(tmp_path, THERE, 0)


def test_what_an_earlier_version_did_not_record_is_no_difference(tmp_path: Path) -> None:
    """Neither the whole record nor a field of it."""
    assert claimed(tmp_path, HERE, 4) == [{"from_step": 5} | HERE.to_json()]
    path = tmp_path / "run.json"
    record = json.loads(path.read_text())
    del record["arithmetic"][0]["torch"]
    path.write_text(json.dumps(record))
    claimed(tmp_path, Arithmetic(device="cpu AVX2", num_threads=1, torch="2.14.0"), 5)


def test_a_search_that_goes_on_elsewhere(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MKL_CBWR", raising=False)
    first = search("search.target_ratio=0.25")
    assert first.status == 0, first.output
    folder, steps = first.folder, [json.loads(line) for line in first.trajectory]
    path = folder / "trajectory.jsonl"
    three = b"".join(path.read_bytes().splitlines(keepends=True)[:3])
    path.write_bytes(three)  # as if it had been killed there
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    resume = ("resume=true", f"output_dir={folder}")

    refused = search(*resume, bare=True)
    assert refused.status == 2, refused.output
    assert "computed otherwise" in refused.errors[0]
    assert "variables: none there, MKL_CBWR=COMPATIBLE here" in refused.output
    assert path.read_bytes() == three

    accepted = search(*resume, "accept_other_arithmetic=true", bare=True)
    assert accepted.status == 0, accepted.output
    assert_marked(Outcome(0, "", folder), steps)
    assert "computed otherwise from step 4 on" in accepted.output
    again = search(*resume, bare=True)
    assert again.status == 0, "what was accepted once is no longer another one"
    monkeypatch.delenv("MKL_CBWR")
    assert search(*resume, bare=True).status == 2, "but accepted once is not accepted for ever"


def assert_marked(outcome: Outcome, steps: list[dict[str, Any]]) -> None:
    """In all three files."""
    spans = outcome.read("run.json")["arithmetic"]
    assert [span["from_step"] for span in spans] == [1, 4]
    assert [span["variables"] for span in spans] == ["", "MKL_CBWR=COMPATIBLE"]
    assert outcome.summary["arithmetic"] == spans
    marks = [json.loads(line)["arithmetic"] for line in outcome.trajectory]
    digests = [
        Arithmetic(**{name: value for name, value in span.items() if name != "from_step"}).digest
        for span in spans
    ]
    assert marks == [digests[0]] * 3 + [digests[1]] * (len(steps) - 3)
    assert "accept_other_arithmetic: false" in (outcome.folder / "config.yaml").read_text()
