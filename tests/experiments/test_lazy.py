"""What the program that compares selections prints, against what the runs recorded."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from experiments.heldout.judging import difference
from experiments.lazy.__main__ import in_common, main
from tests.pipelines.command import Outcome, run_command, searched
from tests.tiny_search import LAZY, LONG, places, tiny_search


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_folder: Path, token_file: Path
) -> tuple[Outcome, Outcome, Outcome]:
    """Exhaustive, lazy, and exhaustive for another target."""
    folder = tmp_path_factory.mktemp("lazy")
    words = tiny_search(checkpoint_folder, token_file, *LONG)
    exact = searched(folder, *words)
    others = [
        run_command("prune", *words, *more, *places(folder), f"output_dir={folder}/{name}")
        for name, more in (("lazy", LAZY), ("other", ("search.target_ratio=0.3",)))
    ]
    return exact, others[0], others[1]


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["lazy", *map(str, words)])
    return main()


def test_it_says_what_was_left_out_and_what_that_cost(
    runs: tuple[Outcome, Outcome, Outcome],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exact, lazy, _ = runs
    assert run(monkeypatch, exact.folder, lazy.folder, "--windows", 4) == 0
    said = capsys.readouterr().out
    counts = [outcome.summary["evaluations"]["candidates"] for outcome in (exact, lazy)]
    known = counts[1] + lazy.summary["evaluations"]["unscored"]
    words = (f": {counts[0]} candidates", f": {counts[1]} of {known} candidates")
    for outcome, candidates in zip((exact, lazy), words, strict=True):
        line = next(each for each in said.splitlines() if str(outcome.folder) in each)
        taken = outcome.summary["taken"]["flops"]
        assert candidates in line
        assert f"FLOPs {exact.summary['taken']['flops'] / taken:.2f} times fewer" in line
        nll = float(re.search(r"held-out NLL ([\d.]+)", line)[1])  # type: ignore[index]
        perplexity = outcome.summary["perplexity"]["heldout"]["pruned"]
        assert nll == pytest.approx(math.log(perplexity), abs=1e-4)
    assert lazy.summary["taken"]["flops"] < exact.summary["taken"]["flops"]


def test_runs_that_do_not_compare_are_refused(
    runs: tuple[Outcome, Outcome, Outcome],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exact, _, other = runs
    assert run(monkeypatch, exact.folder, other.folder) == 2
    assert "other settings, model or text" in capsys.readouterr().err


def test_the_error_of_a_difference_by_hand() -> None:
    """Differences 1, 2, 3: their mean is 2, their variance 1."""
    found = difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found == pytest.approx((2.0, 1 / math.sqrt(3)))


def test_steps_in_common_end_at_the_first_other_one() -> None:
    mine = [{"removed": {"layer": layer}} for layer in (1, 2, 3, 4)]
    theirs = [{"removed": {"layer": layer}} for layer in (1, 2, 0, 4)]
    assert (in_common(mine, theirs), in_common(mine, mine)) == (2, 4)
