"""Runs llama.cpp in a process of its own: a crash of native code is a failed test then, and its
threads meet nobody else's.

Asked with `ask`; run as a program it answers one question, a JSON object on standard input, in
files and JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from pruning.export.verify_gguf import has_llama_cpp, opened

needs_llama_cpp = pytest.mark.skipif(
    not has_llama_cpp(),
    reason="needs llama.cpp: pip install 'cyllama<0.3' (wheels for Linux x86-64)",
)
QUANTIZED = {"Q8_0": 7, "Q4_K_M": 15}
"""Numbers of llama.cpp's `llama_ftype`."""


class Answer(NamedTuple):
    """`logits` [T, V] after each token of the prompt and then of what was generated; `generated`
    greedy tokens; `texts` as token numbers.
    """

    logits: np.ndarray
    generated: list[int]
    texts: list[list[int]]


def ask(
    model: Path,
    scratch: Path,
    prompt: list[int],
    *,
    generate: int = 0,
    cache: str = "f32",
    texts: tuple[str, ...] = (),
) -> Answer:
    """Feeds `prompt` token by token, so that each logit comes from the cache, then generates
    greedily.
    """
    return Answer(
        *_run(
            {
                "model": str(model),
                "prompt": prompt,
                "generate": generate,
                "cache": cache,
                "texts": texts,
            },
            scratch,
        )
    )


def quantize(source: Path, target: Path, scratch: Path, kind: str) -> None:
    """What llama-quantize does."""
    _run({"model": str(source), "quantize": str(target), "type": QUANTIZED[kind]}, scratch)


def _run(
    question: dict[str, object], scratch: Path
) -> tuple[np.ndarray, list[int], list[list[int]]]:
    logits = scratch / "logits.npy"
    command = [sys.executable, __file__, str(logits)]
    done = subprocess.run(
        command,
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"llama.cpp ended with {done.returncode}: {done.stderr[-2000:]}"
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return (
        (np.load(logits) if answer["generated"] is not None else np.empty(0)),
        answer["generated"],
        answer["texts"],
    )


def _main(logits: str) -> None:
    question = json.loads(sys.stdin.read())
    if "quantize" in question:
        from cyllama.llama import llama_cpp as native

        native.llama_backend_init()
        parameters = native.LlamaModelQuantizeParams()
        parameters.ftype = question["type"]
        native.model_quantize(question["model"], question["quantize"], parameters)
        sys.stdout.write(json.dumps({"generated": None, "texts": []}))
        return
    vocab, feed = opened(question["model"], 256, cache=question["cache"])
    rows, tokens, generated = [], list(question["prompt"]), []
    for step in range(len(tokens) + question["generate"]):
        rows.append(feed(tokens[step], step))
        if step >= len(question["prompt"]) - 1:
            tokens.append(int(rows[-1].argmax()))
            generated.append(tokens[-1])
    np.save(logits, np.stack(rows))
    texts = [list(vocab.tokenize(text, True, True)) for text in question["texts"]]
    sys.stdout.write(json.dumps({"generated": generated[: question["generate"]], "texts": texts}))


if __name__ == "__main__":
    _main(sys.argv[1])
