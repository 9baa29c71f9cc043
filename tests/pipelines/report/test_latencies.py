"""The section of a report on the tables of latencies that targets in time were by."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.report.folders import read_runs
from pipelines.report.latencies import latencies
from pipelines.report.page import Chart, Folded, Heading, Table, Text
from pruning.models.checkpoint import Checkpoint
from tests.pipelines.conftest import Cli, Search
from tests.pruning.costs.tables import table

UNIFORM = ("search=uniform", "search.distribution=[0,1,0]", "search.mlp_group_channels=8")
MLP = {0: (0, 0), 24: (8, 1), 32: (5, 2), 48: (9, 3)}


def test_milliseconds_over_size(
    search: Search, cli: Cli, tmp_path: Path, checkpoint_folder: Path
) -> None:
    """Two runs by one table, and one that has none."""
    path, fingerprint = tmp_path / "table.json", Checkpoint(checkpoint_folder).fingerprint()
    table({0: (0, 0), 3: (4, 5)}, MLP, fingerprint=fingerprint).save(path)
    words = (*UNIFORM, f"latency={path}", "search.target_ratio=null")
    found = [
        search(*words, f"search.target.decode={ratio}", folder=f"d{ratio}") for ratio in (0.05, 0.1)
    ]
    plain = search(*UNIFORM, "search.target_ratio=0.1", folder="plain")
    assert [each.status for each in (*found, plain)] == [0, 0, 0], found[0].output
    path.unlink()  # the folder has the table
    runs = read_runs([str(each.folder) for each in (*found, plain)])
    assert latencies(runs[2:]) is None
    section = latencies(runs)
    assert section is not None

    [chart] = [part for part in section.parts if isinstance(part, Chart)]
    prefill, decode = chart.figure["data"][:2]
    assert (prefill["name"], decode["name"]) == ("prefill", "decode")
    for trace, number in ((prefill, 0), (decode, 1)):
        assert list(trace["x"]) == list(MLP)
        assert list(trace["y"]) == pytest.approx([ms[number] for ms in MLP.values()])
    assert list(chart.figure["data"][2]["x"]) == [0, 3]
    [heading] = [part for part in section.parts if isinstance(part, Heading)]
    assert heading.text == "by which A, B had a target"
    [said] = [part.text for part in section.parts if isinstance(part, Text)]
    assert "cpu of a test, float32, 2 x (6 + 4) tokens" in said
    assert "Not faster than the next larger size: prefill: 24 channels." in said
    [numbers] = [part.parts[0] for part in section.parts if isinstance(part, Folded)]
    assert isinstance(numbers, Table)
    assert numbers.rows[1] == ("channels of one MLP", "24", "8.000", "1.000")
    report = cli("report", *(str(each.folder) for each in found), folder="report")
    assert report.status == 0, report.output
    assert "Milliseconds over size" in (report.folder / "report.html").read_text()
