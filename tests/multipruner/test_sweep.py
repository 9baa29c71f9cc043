"""A sweep from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import multipruner
from pipelines.sweep.sweep_run import SweepRun
from tests.multipruner.conftest import SEARCH
from tests.pipelines.command import run_command
from tests.tiny_search import places, tiny_search


def test_a_sweep_is_a_table_and_its_runs(
    tiny: dict[str, Any], checkpoint_folder: Path, token_file: Path, tmp_path: Path
) -> None:
    swept = multipruner.sweep(
        checkpoint_folder,
        target=[0.1, 0.25],
        search=SEARCH | {"importance": ["l1", "activation"]},
        **tiny,
    )
    table = swept.table()
    report = json.loads((swept.folder / "sweep.json").read_text())
    assert table.index.tolist() == [point["name"] for point in report["points"]]
    assert table["search.target_ratio"].tolist() == [0.1, 0.1, 0.25, 0.25]
    assert table["search.importance"].tolist() == ["l1", "activation"] * 2
    for name in ("status", "ratio", "steps", "best"):
        assert table[name].tolist() == [point[name] for point in report["points"]], name
    values = [point["values"]["heldout_perplexity"] for point in report["points"]]
    assert table["heldout_perplexity"].tolist() == values
    for name, run in swept.runs.items():
        assert run.trajectory["ratio"].iloc[-1] == table.loc[name, "ratio"]
        assert run.shape.text == run.trajectory["shape"].iloc[-1]
    assert len(swept.runs) == 4
    assert multipruner.open(swept.folder) == swept

    words = [
        *tiny_search(checkpoint_folder, token_file, "search.target_ratio=[0.1,0.25]"),
        "search.importance=[l1,activation]",
    ]
    command = run_command("sweep", *words, *places(tmp_path), f"output_dir={tmp_path}/command")
    assert command.status == 0, command.output
    for name in ("best", "grid", "evaluations", "pareto"):
        assert report[name] == command.read("sweep.json")[name]


def test_a_sweep_stopped_in_its_first_point_says_so_and_goes_on(
    tiny: dict[str, Any], checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    given = tiny | {"grid": {"search.target_ratio": [0.1, 0.25]}, "search": SEARCH}
    with monkeypatch.context() as patch:
        patch.setattr(SweepRun, "_search", stop)
        with pytest.raises(KeyboardInterrupt):
            multipruner.sweep(checkpoint_folder, output_dir="swept", **given)
    with pytest.raises(multipruner.InputError, match=r"^sweep: no sweep\.json in .*resume=True"):
        multipruner.open("swept")
    swept = multipruner.sweep(resume=True, output_dir="swept", cluster="inline")
    assert swept.table()["target_ratio"].tolist() == [0.1, 0.25]
    assert multipruner.open("swept") == swept
