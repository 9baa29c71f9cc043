"""A run goes on in the channel order that its steps were scored in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.runs.folder import RunFolder
from pipelines.runs.order import claim_order
from pruning.errors import InputError
from pruning.importance.channel_order import ChannelOrder
from tests.pipelines.conftest import Search


def claim(path: Path, fingerprint: str, num_steps: int) -> None:
    with RunFolder(str(path)) as folder:
        folder.claim({"model": "m"})
        claim_order(folder, fingerprint, num_steps=num_steps)


def test_another_order_is_refused_after_the_first_step(tmp_path: Path) -> None:
    claim(tmp_path, "a", 0)
    claim(tmp_path, "b", 0)
    claim(tmp_path, "b", 3)
    with pytest.raises(InputError, match="fingerprint b in run.json, a in the file; restore it"):
        claim(tmp_path, "a", 3)
    assert json.loads((tmp_path / "run.json").read_text())["channel_order"] == "b"


def test_an_allocation_was_measured_in_an_order(tmp_path: Path) -> None:
    claim(tmp_path, "a", 0)
    (tmp_path / "allocation.json").write_text("{}")
    claim(tmp_path, "a", 0)
    with pytest.raises(InputError, match="that allocation.json was measured in: fingerprint a"):
        claim(tmp_path, "b", 0)


def test_what_an_earlier_version_did_not_record_is_recorded(tmp_path: Path) -> None:
    claim(tmp_path, "a", 3)
    assert json.loads((tmp_path / "run.json").read_text())["channel_order"] == "a"


def test_a_search_records_its_order(search: Search) -> None:
    outcome = search()
    path = outcome.folder / "channel_order.safetensors"
    order = ChannelOrder.load(path)
    assert outcome.read("run.json")["channel_order"] == order.fingerprint
    lines = [json.loads(line) for line in outcome.trajectory]
    assert {line["channel_order"] for line in lines} == {order.fingerprint}
    order.after(order).save(path)
    refused = search("resume=true", f"output_dir={outcome.folder}", bare=True)
    assert refused.status == 2
    assert "is not the channel order that the" in refused.errors[0]
