"""Speeds in llama.cpp: what is run, by a context of our own. Real times are never asserted."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from pruning.costs import llama_cpp_program
from pruning.costs.llama_cpp_speed import llama_cpp_speed
from pruning.costs.speed import SpeedSettings
from tests.pruning.export.llama_cpp import needs_llama_cpp

SETTINGS = SpeedSettings(batch_size=1, prompt_tokens=6, new_tokens=3, rounds=2)


class Recorder:
    """A context of llama.cpp that writes down what it is asked."""

    def __init__(self, name: str, log: list[tuple[str, str, tuple[int, ...], int]]) -> None:
        self.name, self.log = name, log

    def kv_cache_clear(self) -> None:
        self.log.append((self.name, "clear", (), 0))

    def synchronize(self) -> None:
        pass


def test_models_take_turns_with_the_same_tokens_after_a_run_that_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[tuple[str, str, tuple[int, ...], int]] = []

    def decode(context: Recorder, tokens: list[int], position: int) -> None:
        log.append((context.name, "decode", tuple(tokens), position))

    monkeypatch.setattr(llama_cpp_program, "_opened", lambda path, *_: Recorder(path, log))
    monkeypatch.setattr(llama_cpp_program, "_decode", decode)
    clock = iter(range(1000))
    monkeypatch.setattr(llama_cpp_program.time, "perf_counter", lambda: float(next(clock)))
    seconds = llama_cpp_program._main(
        {
            "models": {"dense": "d", "pruned": "p"},
            "prompt_tokens": 4,
            "new_tokens": 2,
            "rounds": 3,
            "seed": 0,
            "vocab_size": 50,
            "num_threads": 1,
        }
    )
    assert [name for name, what, _, _ in log if what == "clear"] == list("dpdppddp")
    runs = defaultdict(set)
    for start in range(0, len(log), 4):
        (name, *_), *decoded = log[start : start + 4]
        assert {each[0] for each in decoded} == {name}, "the cache of the model that runs is empty"
        assert [position for *_, position in decoded] == [0, 4, 5]
        assert [len(tokens) for _, _, tokens, _ in decoded] == [4, 1, 1]
        runs[name].add(tuple(tokens for _, _, tokens, _ in decoded))
    assert runs["d"] == runs["p"]
    assert len(runs["d"]) == 1
    assert all(0 <= token < 50 for run in runs["d"] for tokens in run for token in tokens)
    # three readings of the clock a run: before, between, after
    assert seconds == {"dense": [(1, 1)] * 3, "pruned": [(1, 1)] * 3}


@needs_llama_cpp
def test_a_file_that_llama_cpp_cannot_open_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.gguf").write_bytes(b"GGUF")
    with pytest.raises(RuntimeError, match=r"llama\.cpp cannot run torn\.gguf \(it ended with"):
        llama_cpp_speed({"dense": tmp_path / "torn.gguf"}, SETTINGS, vocab_size=9, num_threads=1)
