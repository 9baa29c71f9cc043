"""The journal of a search: what a line holds, when it is on the disk, and how it is read again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.runs.journal import Journal, set_of, step_line
from pruning import disk
from pruning.calibration.token_sets import SetName
from pruning.costs.accounting import Accounting
from pruning.costs.target import Target, costs_of
from pruning.errors import InputError
from pruning.search.stages import StageName
from pruning.search.step import Step
from pruning.shape import Removal
from tests.conftest import tiny_config

ACCOUNTING = Accounting(tiny_config("llama"))
DENSE = ACCOUNTING.dense
MLP, ATTENTION, LAST = Removal("mlp", 1, 0), Removal("attention", 2, 0), Removal("mlp", 3, 0)
JSON = {removal: removal.to_json() for removal in (MLP, ATTENTION, LAST)}
CANDIDATES = ((MLP, 1.5), (ATTENTION, 1.75), (LAST, math.nan))
STDERRS = {MLP: 0.0, ATTENTION: 0.125, LAST: None}
LINES: list[dict[str, Any]] = [
    {"step": number, "shape": "3x48*4", "candidates": [], "removed": JSON[MLP]} for number in (1, 2)
]


def line_of(
    step: Step, token_set: SetName = "block", *, targets: tuple[Target, ...] = ()
) -> dict[str, Any]:
    return step_line(
        step,
        7,
        ACCOUNTING,
        token_set=token_set,
        context_length=9,
        evaluations=40,
        stderrs=STDERRS,
        seconds=1.23456,
        timestamp=1e9 + 0.98765,
        targets=targets,
    )


def step(
    *, stage: StageName = "block", candidates: tuple[tuple[Removal, float], ...] = CANDIDATES
) -> Step:
    return Step(stage, MLP, DENSE.without(MLP), 1.5, 0.25, candidates)


def test_a_line_says_what_went_why_and_what_is_left() -> None:
    shape = DENSE.without(MLP)
    assert line_of(step()) == {
        "step": 7,
        "stage": "block",
        "removed": JSON[MLP],
        "nll": 1.5,
        "perplexity": pytest.approx(math.exp(1.5)),
        "ratio": 0.25,
        "num_parameters": ACCOUNTING.num_parameters(shape),
        "flops_per_token": ACCOUNTING.flops_per_token(shape, context_length=9),
        "margin": 0.25,
        "margin_stderr": 0.125,
        "evaluations": 40,
        "shape": shape.text,
        "candidates": [
            JSON[MLP] | {"nll": 1.5, "stderr": 0.0},
            JSON[ATTENTION] | {"nll": 1.75, "stderr": 0.125},
            JSON[LAST] | {"nll": None, "stderr": None},
        ],
        "seconds": 1.235,
        "timestamp": 1e9 + 0.988,
    }


def test_a_step_without_another_candidate_has_no_margin() -> None:
    line = line_of(step(candidates=((MLP, 1.5), (LAST, math.inf))))
    assert line["margin"] is None
    assert line["margin_stderr"] is None


@pytest.mark.parametrize(
    ("stage", "token_set", "written"),
    [
        ("block", "block", None),
        ("mlp_channels", "width", None),
        ("block", "width", "width"),
        ("mlp_channels", "block", "block"),
    ],
)
def test_the_calibration_set_is_written_where_the_stage_does_not_say_it(
    stage: StageName, token_set: SetName, written: str | None
) -> None:
    line = line_of(step(stage=stage), token_set)
    assert line.get("token_set") == written
    assert set_of(line) == token_set


def test_a_line_says_what_the_step_saves_of_each_cost_that_has_a_target() -> None:
    cost = costs_of(ACCOUNTING, context_length=9)["kv_cache"]
    targets = (Target("search.target.kv_cache", cost, 0.5),)
    less = Step("block", ATTENTION, DENSE.without(ATTENTION), 1.75, 0.25, CANDIDATES)
    assert line_of(less, targets=targets)["saved"] == {"kv_cache": pytest.approx(1 / 4)}


@pytest.mark.parametrize(("base_nll", "written"), [(1.25, 1.25), (math.inf, None)])
def test_a_selection_that_leaves_candidates_out_says_which(
    base_nll: float, written: float | None
) -> None:
    shape = DENSE.without(MLP)
    left_out = ((LAST, 0.5), (ATTENTION, -0.5))
    line = line_of(Step("block", MLP, shape, 1.5, 0.25, CANDIDATES[:1], base_nll, left_out))
    assert line["base_nll"] == written
    assert line["unscored"] == [JSON[LAST] | {"change": 0.5}, JSON[ATTENTION] | {"change": -0.5}]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the disk was told to take: files with the bytes that they had, and folders."""
    found: list[tuple[str, int]] = []

    def file(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        found.append((path.name, path.stat().st_size))

    monkeypatch.setattr(os, "fsync", file)
    monkeypatch.setattr(disk, "sync", lambda path: found.append((path.name, 0)))
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
def test_a_line_is_on_the_disk_whole_and_with_it_the_name_of_a_new_file(
    tmp_path: Path, synced: list[tuple[str, int]]
) -> None:
    path = tmp_path / "trajectory.jsonl"
    journal, sizes = Journal(path), []
    for line in LINES:
        journal.append(line)
        sizes.append(path.stat().st_size)
    assert path.read_text() == "".join(json.dumps(line) + "\n" for line in LINES)
    assert journal.lines == LINES
    assert synced == [(path.name, sizes[0]), (tmp_path.name, 0), (path.name, sizes[1])]


def test_a_line_that_other_programs_could_not_read_is_refused(tmp_path: Path) -> None:
    """JSON has no NaN."""
    journal = Journal(tmp_path / "trajectory.jsonl")
    with pytest.raises(ValueError, match="Out of range float"):
        journal.append({"nll": math.nan})
    assert journal.lines == []


@pytest.mark.parametrize("num_lines", [0, 1, 2])
@pytest.mark.parametrize("torn", ["", "{", '{"step": 3, "shape"'])
def test_a_line_that_a_crash_cut_short_is_dropped(
    tmp_path: Path, num_lines: int, torn: str
) -> None:
    path, text = tmp_path / "trajectory.jsonl", "".join(map(whole_line, LINES[:num_lines]))
    path.write_text(text + torn)
    assert Journal(path).lines == [json.loads(whole_line(line)) for line in LINES[:num_lines]]
    assert path.read_text() == text
    Journal(path).append(LINES[0])
    assert path.read_text() == text + json.dumps(LINES[0]) + "\n"


def whole_line(line: Mapping[str, Any]) -> str:
    """With all that a reader asks for."""
    return json.dumps({**line_of(step()), **line}) + "\n"


def test_a_damaged_journal_is_refused_by_the_name_of_its_option(tmp_path: Path) -> None:
    path = tmp_path / "trajectory.jsonl"
    path.write_text("no JSON\n")
    with pytest.raises(InputError, match=r"^output_dir: .*trajectory\.jsonl"):
        Journal(path)


def test_scores_that_deviate_are_counted_over_all_steps(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trajectory.jsonl")
    for deviating in ({"halved": 2}, {}, {"halved": 1, "other_arithmetic": 4}):
        journal.append(LINES[0] | ({"deviating": deviating} if deviating else {}))
    assert journal.deviating() == {"halved": 3, "other_arithmetic": 4}


class Replayed:
    """A search that is done after two steps, and removes the best of the scores that it is given.

    Args:
        decides: what it says of whether scores are enough.
    """

    def __init__(self, *, decides: bool = True) -> None:
        self.given: list[dict[Removal | None, float]] = []
        self._decides = decides

    @property
    def done(self) -> bool:
        return len(self.given) == 2

    def decides(self, scores: Mapping[Removal | None, float]) -> bool:
        return self._decides

    def observe(self, scores: Mapping[Removal | None, float]) -> SimpleNamespace:
        self.given.append(dict(scores))
        ranked = (each for each, nll in scores.items() if each and math.isfinite(nll))
        return SimpleNamespace(removal=min(ranked, key=lambda each: scores[each]))


def recorded(number: int, base_nll: float | None = None) -> dict[str, Any]:
    """A line of the same candidates; with the score of the shape before."""
    line = line_of(step()) | {"step": number}
    return line if base_nll is None else line | {"base_nll": base_nll}


def test_a_search_is_given_the_scores_again_that_it_had(tmp_path: Path) -> None:
    """A score that was not finite is not a number, as is that of the shape before."""
    journal, search = Journal(tmp_path / "trajectory.jsonl"), Replayed()
    journal.append(recorded(1, base_nll=1.25))
    journal.append(recorded(2))
    journal.replay(search)  # type: ignore[arg-type]
    first, second = search.given
    assert first.pop(None) == 1.25
    for scores in (first, second):
        assert math.isnan(scores.pop(LAST))
        assert scores == {MLP: 1.5, ATTENTION: 1.75}


@pytest.mark.parametrize(
    ("lines", "search", "number"),
    [
        ([recorded(1), recorded(2), recorded(3)], Replayed(), 3),
        ([recorded(1)], Replayed(decides=False), 1),
        ([recorded(1), recorded(2) | {"removed": JSON[ATTENTION]}], Replayed(), 2),
    ],
    ids=["after its end", "scores missing", "another removal"],
)
def test_a_journal_that_does_not_follow_from_the_settings_is_refused(
    tmp_path: Path, lines: list[dict[str, Any]], search: Replayed, number: int
) -> None:
    journal = Journal(tmp_path / "trajectory.jsonl")
    for line in lines:
        journal.append(line)
    with pytest.raises(
        InputError, match=rf"^output_dir: step {number} of .* does not follow from its settings"
    ):
        journal.replay(search)  # type: ignore[arg-type]
