"""Who follows a search is told everything, in order."""

from __future__ import annotations

import inspect
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.prune.observers import Observers, SearchObserver, SearchProgress

EVENTS = [
    name
    for name, method in vars(SearchObserver).items()
    if inspect.isfunction(method) and not name.startswith("_")
]


class Recorder(SearchObserver):
    def __init__(self, name: str, seen: list[tuple[Any, ...]]) -> None:
        self._name, self._seen = name, seen

    def __getattribute__(self, event: str) -> Any:
        if event not in EVENTS:
            return super().__getattribute__(event)
        return lambda *args, **fields: self._seen.append((self._name, event, args, fields))


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_reaches_all_in_their_order(event: str) -> None:
    seen: list[tuple[Any, ...]] = []
    both = Observers(Recorder("first", seen), Recorder("second", seen))
    parameters = list(inspect.signature(getattr(SearchObserver, event)).parameters.values())[1:]
    args = tuple(each.name for each in parameters if each.kind is not each.KEYWORD_ONLY)
    fields = {each.name: True for each in parameters if each.kind is each.KEYWORD_ONLY}
    getattr(both, event)(*args, **fields)
    assert seen == [(name, event, args, fields) for name in ("first", "second")]


class Bar:
    left_s = 90.0

    def __init__(self) -> None:
        self.expected: list[tuple[str, float]] = []

    def expect(self, description: str, remaining: float) -> None:
        self.expected.append((description, remaining))

    def advance(self, done: float, *, scored: bool) -> None:
        """It does not show it."""


def test_a_change_of_perplexity_is_one_on_the_same_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bar = Bar()
    search: Any = SimpleNamespace(
        stage=SimpleNamespace(name="block"),
        steps=[SimpleNamespace(removal="mlp block of layer 2", candidates=[0])],
        expected_evaluations=lambda: 7,
    )
    progress = SearchProgress(bar)  # type: ignore[arg-type]
    progress.started(search, {"block": 0.0, "width": 3.0}, [])
    for stage, perplexity in (
        ("block", 1.5),
        ("block", None),
        ("block", 2.0),
        ("mlp_channels", 9.0),
        ("attention_heads", 9.25),
    ):
        line = {"step": 1, "stage": stage, "perplexity": perplexity, "ratio": 0.1, "seconds": 2.0}
        progress.stepped(search, line)
    said = [record.getMessage().split("; ")[1].split(", ratio")[0] for record in caplog.records]
    assert said == [
        "perplexity 1.500 (+0.500)",
        "perplexity not finite",
        "perplexity 2.000",
        "perplexity 9.000",
        "perplexity 9.250 (+0.250)",
    ]
    assert bar.expected == [("block", 7)] * 6


def test_a_resumed_search_compares_with_its_last_step(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    search: Any = SimpleNamespace(
        stage=None,
        steps=[SimpleNamespace(removal="", candidates=[0])],
        expected_evaluations=lambda: 0,
    )
    progress = SearchProgress(Bar())  # type: ignore[arg-type]
    past = {"stage": "attention_heads", "perplexity": 5.0}
    progress.started(search, {"block": 0.0, "width": 3.0}, [{"stage": "block"}, past])
    line = past | {"step": 1, "perplexity": 5.5, "ratio": 0.1, "seconds": 2.0}
    progress.stepped(search, line)
    assert "perplexity 5.500 (+0.500), ratio 10.00 %, 2.0 s, 0 s left" in caplog.text


def test_what_is_scored_of_steps_to_come_is_not_to_come_any_more() -> None:
    bar, left = Bar(), iter([5, 4, 3, 2])
    search: Any = SimpleNamespace(
        stage=SimpleNamespace(name="block"),
        steps=[SimpleNamespace(removal="", candidates=[0])],
        expected_evaluations=lambda: next(left),
    )
    progress = SearchProgress(bar)  # type: ignore[arg-type]
    progress.started(search, {"block": 0.0}, [])
    progress.scored(None, {}, 2.5, scored=True)  # type: ignore[arg-type]
    progress.scored(None, {}, 0.5, scored=True)  # type: ignore[arg-type]
    line = {"step": 1, "stage": "block", "perplexity": 1.0, "ratio": 0.1, "seconds": 1.0}
    for _ in range(3):
        progress.stepped(search, line)
    assert bar.expected == [("block", 5), ("block", 2), ("block", 2), ("block", 2)]
