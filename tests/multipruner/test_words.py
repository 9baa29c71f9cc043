"""Values of Python as words of a command line: Hydra reads back what was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from multipruner.words import of_search, words_of
from pruning.errors import InputError

TEXTS = ["a", "true", "Null", "nan", "12", "1e3", "", " a ", "a,b", "[a]", "{b: 1}", "a=b"]
TEXTS += [
    "'q\"",
    "${oc.env:HOME}",
    "back\\slash",
    "/a/b c",
    "./x",
    ".5",
    "~/x",
    "ünï",
    "a:b",
    "Tübingen",
]


def read(word: str) -> Any:
    """What Hydra makes of the value of a word."""
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override()
    found = override.value()
    return found.replace("\\${", "${") if isinstance(found, str) else found


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_stays_that_text(text: str) -> None:
    [word] = words_of({"name": text})
    assert read(word) == text
    [word] = words_of({"name": [text]})
    assert [read(f"name={each}") for each in [word.removeprefix("name=[").removesuffix("]")]] == [
        text
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (np.True_, True),
        (None, None),
        (3, 3),
        (0.1, 0.1),
        (1e-7, 1e-7),
        (np.float64(0.2), 0.2),
        (np.int64(4), 4),
        ((40, 40, 20), [40, 40, 20]),
        ([1, [2.5, None]], [1, [2.5, None]]),
        (Path("/a/b"), "/a/b"),
    ],
)
def test_other_values_keep_their_type(value: Any, expected: Any) -> None:
    [word] = words_of({"name": value})
    found = read(word)
    assert found == expected
    assert type(found) is type(expected)


def test_mappings_are_groups_and_lists_of_them_are_values() -> None:
    given = {"search": {"seed": 1, "target": {"kv_cache": 0.1}}, "sources": [{"source": "pydoc"}]}
    words = words_of(given)
    assert words[:2] == ["search.seed=1", "search.target.kv_cache=0.1"]
    assert read(words[2]) == [{"source": "pydoc"}]


def test_a_grid_is_one_value() -> None:
    [word] = words_of({"grid": {"search.target_ratio": [0.1, 0.2], "search": ["uniform"]}})
    assert word.startswith("grid=")
    assert read(word) == {"search.target_ratio": [0.1, 0.2], "search": ["uniform"]}


@pytest.mark.parametrize("again", [{"model": {"path": "b"}}, {"model.path": "b"}, {"model": "b"}])
def test_a_model_is_given_once(again: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^model\.path: given 2 times; a model is model\.path, "):
        words_of(of_search("a", None, None), again)


def test_a_file_of_settings_of_models_and_a_path_are_two_options() -> None:
    words = words_of(of_search("smollm2_135m", None, None), {"model.path": "b"})
    assert words == ["model=smollm2_135m", "model.path=b"]


def test_short_names_are_options() -> None:
    assert words_of(of_search("m", 0.2, "a b.txt")) == [
        "model=m",
        "search.target_ratio=0.2",
        "calibration=text",
        "calibration.path='a b.txt'",
    ]
    assert of_search(None, None, None) == {}


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(InputError) as raised:
        words_of(
            of_search("m", 0.2, "a.txt"),
            {"search": {"target_ratio": 0.3, "seed": object()}, "calibration": "alpaca"},
        )
    lines = str(raised.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "search.target_ratio",
        "calibration",
        "search.seed",
    ]
    assert "type object; options take text, paths, numbers, True, False, None, and" in lines[2]


def test_targets_in_several_costs() -> None:
    given = of_search("a", {"flops": 0.1, "latency": 0.2}, None)
    assert words_of(given, {"latency": "b.json"}) == [
        "model=a", "search.target.flops=0.1", "search.target.latency=0.2", "latency=b.json"
    ]  # fmt: skip
