"""A mixture's numbers and names, before any text is read."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from pruning.calibration.spec import MixedSource, MixtureSpec, split_by_shares

MIXTURE = MixtureSpec(
    (MixedSource("pydoc", 0.75), MixedSource("text", 0.25, path="/texts/my own.txt")),
    num_block_samples=8,
    num_width_samples=4,
    num_heldout_samples=10,
    sequence_length=16,
    seed=42,
)


@pytest.mark.parametrize(
    ("total", "shares", "parts"),
    [
        (10, [0.5, 0.3, 0.2], (5, 3, 2)),
        (16, [1, 1, 1], (6, 5, 5)),
        (2, [1, 1, 3], (1, 0, 1)),
        (7, [0.1, 0.2], (2, 5)),
        (5, [2, 2], (3, 2)),
        (0, [1, 2], (0, 0)),
        (3, [1e-300, 1e300], (0, 3)),
    ],
)
def test_the_largest_remainders_get_what_is_left(
    total: int, shares: list[float], parts: tuple[int, ...]
) -> None:
    assert split_by_shares(total, shares) == parts


def test_each_source_has_its_part_of_the_samples() -> None:
    parts = MIXTURE.parts()
    assert list(parts) == ["pydoc", "my-own"]
    numbers = [
        (each.num_block_samples, each.num_width_samples, each.num_heldout_samples, each.seed)
        for each in parts.values()
    ]
    assert numbers == [(6, 3, 8, 42), (2, 1, 2, 42)]
    assert [each.option for each in parts.values()] == [
        "calibration.sources.0",
        "calibration.sources.1",
    ]
    source = MixedSource("text", path="/rows.jsonl", column="body")
    [only] = replace(MIXTURE, sources=(source,)).parts().values()
    assert (only.source, only.path, only.column, only.sequence_length) == (
        "text",
        "/rows.jsonl",
        "body",
        16,
    )
    assert not only.rows_are_samples
    assert MIXTURE.problems() == []
    assert replace(MIXTURE, num_heldout_samples=0).problems() == []


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ((), "calibration.sources: empty; give a list such as"),
        ((MixedSource("pydoc", -1),), "calibration.sources.0.share: -1; above 0"),
        ((MixedSource("pydoc", 0), MixedSource("c4")), "sources.0.share: 0; above 0"),
        ((MixedSource("c4"), MixedSource("pydoc", float("inf"))), "sources.1.share: inf; above 0"),
        ((MixedSource("c4", float("nan")),), "sources.0.share: nan; above 0"),
        (
            (MixedSource("c4"), MixedSource("c4")),
            "calibration.sources.1.name: c4, as that of calibration.sources.0",
        ),
        ((MixedSource("c4", name="a/b"),), "sources.0.name: 'a/b'; letters, digits"),
        ((MixedSource("c4", name=""),), "sources.0.name: ''; letters, digits"),
    ],
)
def test_sources_that_make_no_mixture(sources: tuple[MixedSource, ...], message: str) -> None:
    [problem] = replace(MIXTURE, sources=sources).problems()
    assert message in problem


def test_a_source_without_a_sample_is_refused() -> None:
    problems = replace(MIXTURE, num_width_samples=1, num_heldout_samples=1).problems()
    assert problems == [
        f"calibration.{name}: 1, of which calibration.sources.1 (my-own, share 0.25) would get "
        "none; give 4 or more, or other shares"
        for name in ("num_width_samples", "num_heldout_samples")
    ]


def test_what_is_said_to_be_enough_is_enough() -> None:
    scarce = replace(
        MIXTURE,
        sources=(MixedSource("c4", 0.7), MixedSource("ptb", 0.2), MixedSource("pydoc", 0.1)),
        num_block_samples=2,
        num_heldout_samples=0,
    )
    said = re.search(r"num_block_samples.* give (\d+) or more", "\n".join(scarce.problems()))
    assert said
    enough = replace(scarce, num_block_samples=int(said[1]), num_width_samples=int(said[1]))
    assert enough.problems() == []


@pytest.mark.parametrize(
    ("source", "label"),
    [
        (MixedSource("c4"), "c4"),
        (MixedSource("c4", path="/texts/local.jsonl"), "c4"),
        (MixedSource("tokens", path="/texts/a b,c.d.safetensors"), "a-b-c.d"),
        (MixedSource("text"), "text"),
        (MixedSource("text", path="/texts/a.txt", name="mine"), "mine"),
    ],
)
def test_a_source_is_called_what_it_is_given_or_where_it_lies(
    source: MixedSource, label: str
) -> None:
    assert source.label == label


def test_sources_of_which_nothing_is_said_have_equal_shares() -> None:
    sources = (MixedSource("c4"), MixedSource("ptb", 1), MixedSource("pydoc", 6))
    assert str(replace(MIXTURE, sources=sources)) == "c4 0.125, ptb 0.125, pydoc 0.75"
