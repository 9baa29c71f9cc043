"""The program that chooses on a part of the selection text, against what the run wrote."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

from experiments.table_text.__main__ import changes_of, draw, main, outermost
from pipelines.runs.saved_run import read_run
from pruning.search.allocation import Limit, size_of
from pruning.shape import ModelShape
from tests.pipelines.command import Outcome, searched
from tests.tiny_search import tiny_search


@pytest.fixture(scope="module")
def allocated(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_folder: Path, token_file: Path
) -> Outcome:
    words = tiny_search(
        checkpoint_folder, token_file, "search.target_ratio=0.12", "search.distribution=[0,1,1]",
        "search.mlp_group_channels=8",
    )  # fmt: skip
    return searched(tmp_path_factory.mktemp("run"), "search=allocation", *words)


def test_the_sequences_average_to_the_table_of_the_run(allocated: Outcome) -> None:
    base, changes = changes_of(read_run(str(allocated.folder)))
    [first, *_] = json.loads((allocated.folder / "allocation.json").read_text())["rounds"]
    assert base.text == first["base"]
    assert {
        (block, size): pytest.approx(fmean(each), abs=1e-12)
        for block, sizes in changes.items()
        for size, each in sizes.items()
    } == {((row["layer"], row["unit"]), row["size"]): row["kl"] for row in first["changes"]}


def test_what_was_chosen_is_judged_by_the_other_sequences() -> None:
    """Each of two sequences says that the other block may shrink."""
    base = ModelShape.parse("2x8*2")
    changes = {
        (0, "mlp_channels"): {8: [0.0, 0.0], 4: [-1.0, 3.0]},
        (1, "mlp_channels"): {8: [0.0, 0.0], 4: [5.0, -2.0]},
    }
    limit = Limit("width", lambda shape: sum(layer.mlp_channels for layer in shape.layers), 12)
    found = draw(base, changes, limit, 1, 2, 9)  # type: ignore[arg-type]
    assert (found.seen, found.unseen, found.stderr) == (-1.5, 4.0, 1.0)


def test_the_outermost_sizes() -> None:
    base = ModelShape.parse("2x8")
    block, rows = (0, "mlp_channels"), {size: [0.0] for size in (4, 6, 8, 10, 12)}
    assert size_of(base, block) == 8  # type: ignore[arg-type]
    assert set(outermost(base, {block: rows})[block]) == {4, 8, 12}  # type: ignore[dict-item,index]


def test_a_row_for_each_number_of_sequences(
    allocated: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["table_text", str(allocated.folder), "--draws", "2"])
    assert main() == 0
    said = capsys.readouterr().out.splitlines()
    _, changes = changes_of(read_run(str(allocated.folder)))
    [count] = {len(each) for sizes in changes.values() for each in sizes.values()}
    assert len(said) == 2 * count
    assert said[0].startswith("all sizes: predicted change of KL")


def test_a_run_without_a_table_is_refused(
    allocated: Outcome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["table_text", str(tmp_path)])
    assert main() == 2
    assert "error:" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["table_text", str(allocated.folder)])
    (allocated.folder / "allocation.json").rename(tmp_path / "kept")
    assert main() == 2
    assert "no allocation.json; give a run of search=allocation" in capsys.readouterr().err
    (tmp_path / "kept").rename(allocated.folder / "allocation.json")


def test_a_run_for_another_cost_is_refused(
    allocated: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = allocated.folder / "config.yaml"
    before = config.read_text()
    config.write_text(before.replace("target_ratio: 0.12", "target_ratio: null"))
    monkeypatch.setattr("sys.argv", ["table_text", str(allocated.folder)])
    assert main() == 2
    assert "it has no search.target_ratio to solve for" in capsys.readouterr().err
    config.write_text(before)
