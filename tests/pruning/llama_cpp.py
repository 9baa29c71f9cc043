"""Runs llama.cpp in a process of its own: a crash of native code is a failed test then, and its threads meet nobody else's.

Asked with `ask`; run as a program it answers one question, a JSON object on standard input, in files and JSON.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

AVAILABLE = importlib.util.find_spec("cyllama") is not None
needs_llama_cpp = pytest.mark.skipif(not AVAILABLE, reason="needs llama.cpp: pip install cyllama (a wheel for Linux x86-64)")

_GGML_TYPES = {"f32": 0, "f16": 1}


class Answer(NamedTuple):
    """`logits` [T, V] after each token of the prompt and then of what was generated; `generated` greedy tokens; `texts` as token numbers."""

    logits: np.ndarray
    generated: list[int]
    texts: list[list[int]]


def ask(model: Path, scratch: Path, prompt: list[int], *, generate: int = 0, cache: str = "f32", texts: tuple[str, ...] = ()) -> Answer:
    """Feeds `prompt` token by token, so that each logit comes from the cache, then generates greedily."""
    return Answer(*_run({"model": str(model), "prompt": prompt, "generate": generate, "cache": cache, "texts": texts}, scratch))


def quantize(source: Path, target: Path, scratch: Path) -> None:
    """What llama-quantize does, to Q8_0."""
    _run({"model": str(source), "quantize": str(target)}, scratch)


def _run(question: dict[str, object], scratch: Path) -> tuple[np.ndarray, list[int], list[list[int]]]:
    logits = scratch / "logits.npy"
    command = [sys.executable, __file__, str(logits)]
    done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"llama.cpp ended with {done.returncode}: {done.stderr[-2000:]}"
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return (np.load(logits) if answer["generated"] is not None else np.empty(0)), answer["generated"], answer["texts"]


def _main(logits: str) -> None:
    from cyllama.llama import llama_cpp as native

    class Model(native.LlamaModel):
        """0.2.18 asks its model for a number that it lacks."""

        @property
        def n_vocab(self) -> int:
            return self.get_vocab().n_vocab

    question = json.loads(sys.stdin.read())
    native.llama_backend_init()
    if "quantize" in question:
        parameters = native.LlamaModelQuantizeParams()
        parameters.ftype = 7  # LLAMA_FTYPE_MOSTLY_Q8_0
        native.model_quantize(question["model"], question["quantize"], parameters)
        sys.stdout.write(json.dumps({"generated": None, "texts": []}))
        return
    model = Model(question["model"], native.LlamaModelParams())
    vocab = model.get_vocab()
    context_parameters = native.LlamaContextParams()
    context_parameters.n_ctx = 256
    context_parameters.n_threads = context_parameters.n_threads_batch = 1
    context_parameters.type_k = context_parameters.type_v = _GGML_TYPES[question["cache"]]
    context_parameters.flash_attn_type = 0  # off: it rounds to half precision whatever the cache holds
    context = native.LlamaContext(model, context_parameters)
    rows, tokens, generated = [], list(question["prompt"]), []
    for step in range(len(tokens) + question["generate"]):
        assert context.decode(native.llama_batch_get_one([tokens[step]], step)) == 0
        rows.append(np.array(context.get_logits(), dtype=np.float32))
        if step >= len(question["prompt"]) - 1:
            tokens.append(int(rows[-1].argmax()))
            generated.append(tokens[-1])
    np.save(logits, np.stack(rows))
    texts = [list(vocab.tokenize(text, True, True)) for text in question["texts"]]
    sys.stdout.write(json.dumps({"generated": generated[: question["generate"]], "texts": texts}))


if __name__ == "__main__":
    _main(sys.argv[1])
