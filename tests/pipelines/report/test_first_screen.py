"""The first screen, what a reader asks of it, and what is apart on the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli
from tests.pipelines.report.reports import A1, A2, an_evaluation, figures, heldout_nll, write_run

Command = Callable[..., Outcome]


@pytest.fixture
def command(cli: Cli) -> Command:
    return partial(cli, "report")


def first_screen(outcome: Outcome) -> tuple[str, str]:
    """The whole page, and the words that come before the first fold."""
    assert outcome.status == 0, outcome.output
    page = (outcome.folder / "report.html").read_text()
    first = page[page.index('id="result"') : page.index('id="runs"')]
    return page, " ".join(re.sub(r"<[^>]+>", " ", first).split())


def test_each_source_of_a_mixture_is_on_the_first_screen(command: Command, tmp_path: Path) -> None:
    sources = {"pydoc": (10.0, 12.0), "my": (20.0, 19.0)}
    paths = [write_run(tmp_path / "mix", [A1], sources=sources), write_run(tmp_path / "one", [A1])]
    page, text = first_screen(command(*paths, "log_to_mlflow=false"))
    assert "A pydoc 10.00 12.00 +20.0% A my 20.00 19.00 -5.0%" in text
    assert "held-out perplexity, my" in page
    alone = command(paths[1], "log_to_mlflow=false", folder="alone")
    assert "of a mixture" not in (alone.folder / "report.html").read_text()


def test_the_first_screen_has_the_numbers_of_every_run(command: Command, tmp_path: Path) -> None:
    random = {"search.strategy": "random"}
    good, bad = heldout_nll(2.1, 2.3, 2.52, 2.68), heldout_nll(2.5, 2.71, 2.9, 3.1)
    paths = [
        write_run(tmp_path / "good", [A1], summary=good),
        write_run(tmp_path / "bad", [A2], summary=bad, settings=random),
        write_run(tmp_path / "stopped", [A1], ended=False),
    ]
    outcome = command(*paths, "log_to_mlflow=false")
    page, text = first_screen(outcome)
    assert "Of the 2 runs at 5.0 % removed, A (good) has the lowest held-out perplexity" in text
    assert "run removed held-out perplexity change method dense model 0.00% 9.97 - " in text
    assert "A good 5.00% 11.02 ± 0.09 +10.5% greedy best" in text
    assert "B bad 5.00% 16.49 ± 0.04 +65.3% random, a control" in text
    assert "C stopped 5.00% - - greedy not ended" in text
    assert page.count('<tr class="best">') == 1
    shown = {
        trace["name"]: trace for trace in figures(outcome.folder / "report.html")["front"]["data"]
    }
    assert shown["best"]["y"] == shown["A good"]["y"] == pytest.approx([11.02], abs=0.01)
    assert shown["A good"]["error_y"]["array"] == pytest.approx([0.09], abs=0.001)
    assert "<b>A, best</b>" in shown["A good"]["text"][0]
    assert shown["dense model"]["x"] == [0]


def test_what_does_not_compare_is_said(command: Command, tmp_path: Path) -> None:
    """Of one held-out text and of two; a text that is called like a column; a perplexity that is
    out of range.
    """
    evaluated = an_evaluation(0.05, 25.0, 0.5)
    evaluated["perplexity"] = {"change": 25.0, "MyNotes": 24.0}
    evaluated["dense"]["perplexity"] = {"change": 20.0, "MyNotes": 20.0}
    evaluated["fingerprints"] = {"texts": {"change": "c", "MyNotes": "m"}}
    nll = heldout_nll(2.1, 2.3, 2.52, 2.68)
    lost = heldout_nll(2.1, 2.3, 2.52, 2.68)
    lost["perplexity"]["heldout"]["pruned"] = None
    same = [
        write_run(tmp_path / "a", [A1], summary=nll),
        write_run(tmp_path / "lost", [A2], summary=lost),
        write_run(tmp_path / "c", [A1], summary=nll, evaluation=evaluated),
    ]
    page, first = first_screen(command(*same, "log_to_mlflow=false"))
    assert "compare only within" not in first, "what was not measured is of no other text"
    assert " change " in first
    assert "perplexity on change" in first
    assert "Perplexity on MyNotes against ratio" in page
    other = write_run(tmp_path / "d", [A1], model="n", summary=nll)
    _, first = first_screen(command(*same, other, "log_to_mlflow=false", folder="other"))
    assert (
        "Held-out perplexity: compare only within A, C and within D, which differ in model, text, "
        "documents or type."
    ) in first


def test_an_evaluation_of_an_earlier_shape_is_left_out(command: Command, tmp_path: Path) -> None:
    early = an_evaluation(0.01, 33.25, 0.5) | {"shape": "9x9*3"}
    path = write_run(tmp_path / "a", [A1], evaluation=early)
    outcome = command(path, "log_to_mlflow=false")
    assert outcome.status == 0, outcome.output
    assert "is of an earlier shape: it is left out; evaluate the run again" in outcome.output
    assert "33.25" not in (outcome.folder / "report.html").read_text()


def test_samples_stand_side_by_side_as_they_are(command: Command, tmp_path: Path) -> None:
    written = {"prompt": "Once <i>", "dense": "a\n<b>cat</b>", "pruned": "<script>dog</script>"}
    paths = [write_run(tmp_path / "one", [A1], summary={"samples": [written]})]
    page = (command(*paths, "log_to_mlflow=false").folder / "report.html").read_text()
    section = page[page.index('id="samples"') :]
    assert "<p>Once &lt;i&gt;</p>" in section
    assert "<h4>dense</h4><pre>a\n&lt;b&gt;cat&lt;/b&gt;</pre>" in section
    assert "<h4>A, pruned</h4><pre>&lt;script&gt;dog&lt;/script&gt;</pre>" in section
    paths = [write_run(tmp_path / "two", [A1])]
    without = command(*paths, "log_to_mlflow=false", folder="without").folder / "report.html"
    assert 'id="samples"' not in without.read_text()


def test_stability_is_told_apart_by_method(command: Command, tmp_path: Path) -> None:
    """Two greedy runs agree, two random ones do not, and nothing is said of all four."""
    random = {"search.strategy": "random"}
    given = ((A1, {}), (A2, random), (A1, {}), (A1, random))
    paths = [
        write_run(tmp_path / f"run{number}", [step], settings=settings)
        for number, (step, settings) in enumerate(given)
    ]
    outcome = command(*paths, "log_to_mlflow=false")
    assert outcome.status == 0, outcome.output
    page = (outcome.folder / "report.html").read_text()
    section = " ".join(re.sub(r"<[^>]+>", " ", page[page.index('id="stability"') :]).split())
    assert "m, greedy How many runs removed each block 1 of 1 blocks" in section
    assert "by all 2 runs (A, C)" in section
    assert "m, random How many runs removed each block 0 of 2 blocks" in section
    assert "by all 2 runs (B, D)" in section
    alone = command(*paths[:2], "log_to_mlflow=false", folder="alone").folder / "report.html"
    assert 'id="stability"' not in alone.read_text()


@pytest.mark.parametrize("word", ["--open", "open=true"])
def test_the_page_opens_in_the_browser(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    path, opened = write_run(tmp_path / "one", [A1]), list[str]()
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) is None)
    outcome = command(path, word, "log_to_mlflow=false")
    assert outcome.status == 0, outcome.output
    assert opened == [(outcome.folder / "report.html").as_uri()]
    assert "no browser" not in outcome.output
    command(path, "log_to_mlflow=false")
    assert len(opened) == 1


def test_a_machine_without_a_browser_gets_a_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    outcome = command(write_run(tmp_path / "one", [A1]), "--open", "log_to_mlflow=false")
    assert outcome.status == 0, outcome.output
    assert "open: no browser was found on this machine" in outcome.output
