"""Speeds in llama.cpp: what is run, by an engine of our own. Real times are never asserted."""

from __future__ import annotations

import importlib.metadata
import io
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pruning.costs import llama_cpp_program
from pruning.costs.llama_cpp_speed import llama_cpp_runs
from pruning.costs.speed import SpeedSettings
from tests.pruning.export.llama_cpp import needs_llama_cpp

SETTINGS = SpeedSettings(batch_size=1, prompt_tokens=6, new_tokens=3, rounds=2)
QUESTION: dict[str, Any] = {
    "models": {"dense": "d", "pruned": "p"},
    "prompt_tokens": 4,
    "new_tokens": 2,
    "rounds": 3,
    "seed": 0,
    "vocab_size": 50,
    "num_threads": 5,
}


class Engine:
    """Of llama.cpp, what is used: it computes later, when it is waited for. A token takes a second,
    and to clear the cache takes a hundred.
    """

    def __init__(self) -> None:
        self.is_initialised = False
        self.seconds = self.queued = 0.0
        self.contexts: dict[str, Any] = {}
        self.runs: list[tuple[str, list[tuple[tuple[int, ...], int]]]] = []
        self.status = 0

    def module(self) -> SimpleNamespace:
        """As cyllama has it."""
        return SimpleNamespace(
            llama_backend_init=self._initialise,
            LlamaModelParams=SimpleNamespace,
            LlamaModel=self._model,
            LlamaContextParams=lambda: SimpleNamespace(n_batch=5),
            LlamaContext=self._context,
            llama_supports_gpu_offload=lambda: True,
            llama_batch_get_one=lambda tokens, position: (tokens, position),
        )

    def _initialise(self) -> None:
        self.is_initialised = True

    def _model(self, path: str, _: object) -> str:
        assert self.is_initialised, "it aborts before"
        return path

    def _context(self, model: str, parameters: Any) -> Any:
        self.contexts[model] = parameters
        return SimpleNamespace(
            kv_cache_clear=lambda: self._clear(model),
            decode=lambda batch: self._decode(model, *batch),
            synchronize=self._wait,
        )

    def _clear(self, model: str) -> None:
        self.runs.append((model, []))
        self.queued += 100

    def _decode(self, model: str, tokens: list[int], position: int) -> int:
        name, decoded = self.runs[-1]
        assert name == model, "the cache of the model that runs is empty"
        decoded.append((tuple(tokens), position))
        self.queued += len(tokens)
        return self.status

    def _wait(self) -> None:
        self.seconds, self.queued = self.seconds + self.queued, 0.0


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setitem(sys.modules, "cyllama", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cyllama.llama", SimpleNamespace(llama_cpp=engine.module()))
    monkeypatch.setattr(llama_cpp_program.time, "perf_counter", lambda: engine.seconds)
    return engine


def test_models_take_turns_with_the_same_tokens_after_a_run_that_is_not_timed(
    engine: Engine,
) -> None:
    seconds = llama_cpp_program._main(QUESTION)
    assert seconds == {"dense": [(4, 2)] * 3, "pruned": [(4, 2)] * 3}
    assert [name for name, _ in engine.runs] == list("dpdppddp")
    for _, decoded in engine.runs:
        assert [position for _, position in decoded] == [0, 4, 5]
        assert [len(tokens) for tokens, _ in decoded] == [4, 1, 1]
    [tokens] = {tuple(token for each, _ in run for token in each) for _, run in engine.runs}
    assert all(0 <= token < 50 for token in tokens)


def test_a_context_has_room_for_a_run_and_as_many_threads_as_are_given(engine: Engine) -> None:
    llama_cpp_program._main(QUESTION)
    for context in engine.contexts.values():
        assert (context.n_ctx, context.n_batch) == (6, 6)
        assert (context.n_threads, context.n_threads_batch) == (5, 5)
    llama_cpp_program._main(QUESTION | {"prompt_tokens": 2})
    assert engine.contexts["d"].n_ctx == 4
    assert engine.contexts["d"].n_batch == 5, "no fewer than by default"


@pytest.mark.parametrize("status", [1, 2, -1])
def test_tokens_that_are_not_decoded_are_said(engine: Engine, status: int) -> None:
    engine.status = status
    with pytest.raises(RuntimeError, match=f"^llama_decode returned {status} at token 0$"):
        llama_cpp_program._main(QUESTION)


def test_a_program_reads_what_to_do_and_writes_seconds(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(QUESTION)))
    monkeypatch.setattr(sys, "argv", ["program", str(tmp_path / "seconds.json")])
    monkeypatch.delitem(sys.modules, llama_cpp_program.__name__)
    monkeypatch.setattr(importlib.metadata, "version", {"cyllama": "1.2.3"}.get)
    runpy.run_module(llama_cpp_program.__name__, run_name="__main__")
    found = json.loads((tmp_path / "seconds.json").read_text())
    assert found.pop("seconds") == {"dense": [[4, 2]] * 3, "pruned": [[4, 2]] * 3}
    assert found == {"version": "llama.cpp of cyllama 1.2.3", "device": "gpu"}


@needs_llama_cpp
def test_a_file_that_llama_cpp_cannot_open_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.gguf").write_bytes(b"GGUF")
    with pytest.raises(RuntimeError, match=r"llama\.cpp cannot run torn\.gguf \(it ended with"):
        llama_cpp_runs({"dense": tmp_path / "torn.gguf"}, SETTINGS, vocab_size=9, num_threads=1)
