"""Several texts in one calibration set."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from transformers import PreTrainedTokenizerFast

from pruning.calibration import windows
from pruning.calibration.mixture import interleaving
from pruning.calibration.spec import CalibrationSpec, MixedSource, MixtureSpec
from pruning.calibration.token_sets import heldout_sources
from pruning.errors import InputError
from tests.pruning.calibration.conftest import make, write_text


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_every_beginning_has_the_shares(counts: list[int]) -> None:
    order, total = interleaving(counts), sum(counts)
    assert sorted(order) == sorted(
        index for index, count in enumerate(counts) for _ in range(count)
    )
    for length in range(total + 1):
        for index, count in enumerate(counts):
            assert abs(order[:length].count(index) * total - count * length) < total


def test_two_halves_take_turns() -> None:
    assert interleaving([3, 3]) == (0, 1, 0, 1, 0, 1)
    assert interleaving([2, 4]) == (1, 0, 1, 1, 0, 1)


@pytest.fixture
def mixture(tmp_path: Path, token_file: Path) -> MixtureSpec:
    """Two thirds of a text, and one of tokens."""
    return MixtureSpec(
        (
            MixedSource("text", 2, path=str(write_text(tmp_path / "words.txt", 900))),
            MixedSource("tokens", 1, path=str(token_file)),
        ),
        num_block_samples=6,
        num_width_samples=3,
        num_heldout_samples=4,
        sequence_length=16,
        seed=42,
    )


def test_sources_take_turns_and_keep_their_own_text(
    mixture: MixtureSpec, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What each gives is what it would give alone; the sets are a plain joining of those."""
    made = make(mixture, tokenizer, vocab_size=128)
    assert made.heldout is not None
    assert made.block.origins == ("words", "tokens", "words") * 2
    assert made.width.origins == ("words", "tokens", "words")
    assert made.heldout.origins == ("words", "words", "tokens", "words")
    parts = made.parts()
    assert set(parts) == {f"{name}_{of}" for name in made.sets() for of in ("words", "tokens")}
    assert heldout_sources(parts) == {"heldout_words": "words", "heldout_tokens": "tokens"}
    for source, numbers in ((mixture.sources[0], (4, 2, 3)), (mixture.sources[1], (2, 1, 1))):
        alone = CalibrationSpec(source.source, *numbers, 16, 42, path=source.path)
        for name, tokens in make(alone, tokenizer, vocab_size=128).sets().items():
            part = parts[f"{name}_{source.label}"]
            np.testing.assert_array_equal(part.input_ids, tokens.input_ids)
            assert part.fingerprint == tokens.fingerprint
    for name, tokens in made.sets().items():
        for source_name, positions in tokens.positions().items():
            np.testing.assert_array_equal(
                tokens.input_ids[list(positions)], parts[f"{name}_{source_name}"].input_ids
            )


def test_sets_are_saved_without_their_parts_and_measured_with_them(
    mixture: MixtureSpec, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    made = make(mixture, tokenizer, vocab_size=128)
    made.save(tmp_path / "sets")
    found = load_file(tmp_path / "sets")
    assert set(found) == {"block", "width", "heldout"}
    for name, tokens in made.sets().items():
        np.testing.assert_array_equal(found[name], tokens.input_ids)
    both = made.sets_and_parts()
    assert set(both) == set(found) | set(made.parts())
    assert both["heldout"] is made.heldout
    assert both["heldout_tokens"].fingerprint == made.parts()["heldout_tokens"].fingerprint


def test_a_set_that_no_source_is_asked_for_is_empty(
    mixture: MixtureSpec, tokenizer: PreTrainedTokenizerFast
) -> None:
    for sources in (mixture.sources, mixture.sources[1:]):
        spec = replace(mixture, sources=sources, num_width_samples=0, num_heldout_samples=0)
        made = make(spec, tokenizer, vocab_size=128)
        assert made.width.input_ids.shape == (0, 16)
        assert made.block.input_ids.shape == (6, 16)
        assert made.heldout is None


def test_rows_too_few_for_the_sequences_of_a_mixture(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Nine rows of 10 characters with what joins them are 106: six sequences."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "ten digits"}\n' * 10)
    spec = MixtureSpec((MixedSource("c4", path=str(path)),), 4, 2, 0, 16, seed=1)
    assert make(spec, tokenizer).block.num_sequences == 4
    with pytest.raises(InputError, match=r"sources.0: 2 \+ 5 sequences of 16 .* gives 6"):
        make(replace(spec, num_block_samples=5), tokenizer)


def test_a_single_source_has_no_parts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    spec = CalibrationSpec("text", 5, 3, 2, 16, 42, path=str(write_text(tmp_path / "a.txt")))
    made = make(spec, tokenizer)
    assert (made.parts(), made.block.positions(), made.block.origins) == ({}, {}, ())


def test_a_sample_of_rows_is_a_sequence_in_a_mixture(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of many rows, few are tokenized."""
    tokenized: list[int] = []
    plain = windows.text_windows

    def counted(tokenizer: PreTrainedTokenizerFast, text: str, length: int) -> windows.Tokens:
        tokenized.append(len(text))
        return plain(tokenizer, text, length)

    monkeypatch.setattr(windows, "text_windows", counted)
    path = tmp_path / "rows.jsonl"
    rows = [f"row {number:04d}" for number in range(2000)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    spec = MixtureSpec((MixedSource("c4", path=str(path)),), 7, 5, 3, 30, seed=1)
    made = make(spec, tokenizer)
    assert [tokens.num_sequences for tokens in made.sets().values()] == [7, 5, 3]
    assert sum(tokenized) < 3000 < sum(map(len, rows))
    texts = [
        "".join(chr(31 + token) for token in tokens.input_ids.flat)
        for tokens in (made.width, made.block)
    ]
    drawn = [line[:8] for text in texts for line in text.replace("\x1f", "\n").split("\n\n")]
    whole = [row for row in drawn if row in rows]
    assert len(whole) == len(set(whole)) > 20
    assert whole != sorted(whole)
    other = make(replace(spec, seed=2), tokenizer)
    assert other.block.fingerprint != made.block.fingerprint
    assert other.heldout is not None
    assert made.heldout is not None
    assert other.heldout.fingerprint == made.heldout.fingerprint


def test_a_source_without_heldout_text_is_said_by_its_option(
    mixture: MixtureSpec, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """The other sources are measured all the same."""
    spec = replace(mixture, num_block_samples=72, num_heldout_samples=6)
    words = replace(spec.sources[0], path=str(write_text(Path(spec.sources[0].path or ""), 2000)))
    with caplog.at_level(logging.WARNING):
        made = make(replace(spec, sources=(words, spec.sources[1])), tokenizer, vocab_size=128)
    assert made.heldout is not None
    assert made.heldout.origins == ("words",) * 4
    assert "2 asked for of calibration.sources.1, 0 left" in caplog.text


def test_what_is_wrong_with_each_source_is_told_at_once(
    mixture: MixtureSpec, tmp_path: Path, token_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"body": "x"}\n')
    (tmp_path / "short.txt").write_text("too short")
    spec = replace(
        mixture,
        sources=(
            MixedSource("text", path=str(tmp_path / "none.txt")),
            MixedSource("text", path=str(tmp_path / "short.txt")),
            MixedSource("alpaca", path=str(tmp_path / "rows.jsonl")),
            MixedSource("tokens"),
            MixedSource("tokens", path=str(tmp_path / "short.txt"), name="broken"),
        ),
        num_width_samples=10,
        num_block_samples=10,
        num_heldout_samples=10,
    )
    with pytest.raises(InputError) as error:
        make(spec, tokenizer)
    for problem, said in zip(
        str(error.value).splitlines(),
        (
            "calibration.sources.0.path: no file .*none.txt; source: text needs",
            r"calibration.sources.1: 2 \+ 2 sequences of 16 tokens asked for",
            "calibration.sources.2.column: line 1 of .* has no field 'text'",
            "calibration.sources.3.path: missing; source: tokens needs",
            "calibration.sources.4.path: .* is not a readable safetensors file",
        ),
        strict=True,
    ):
        assert re.search(said, problem), problem
    tokens = MixedSource("tokens", path=str(token_file))
    with pytest.raises(InputError, match="sequence_length: 64, but the sequences in .* have 32"):
        make(replace(mixture, sources=(tokens,), sequence_length=64), vocab_size=128)
    with pytest.raises(InputError, match=r"calibration.sources.0: the \w+ set has token id"):
        make(replace(mixture, sources=(tokens,)), vocab_size=64)
    with pytest.raises(InputError, match="calibration.sources.0.share: 0; above 0"):
        make(replace(mixture, sources=(replace(tokens, share=0),)), vocab_size=128)
