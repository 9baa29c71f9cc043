"""Times GGUF files in llama.cpp, in turns: a program of `pruning.costs.llama_cpp_speed`, which
writes what to do to its standard input, as JSON, and reads seconds from a file.

It needs nothing of this project, so that it starts in a fresh process without torch.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def _main(question: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    generator = random.Random(question["seed"])
    prompt, new = (
        [generator.randrange(question["vocab_size"]) for _ in range(question[name])]
        for name in ("prompt_tokens", "new_tokens")
    )
    contexts = {
        name: _opened(path, len(prompt) + len(new), question["num_threads"])
        for name, path in question["models"].items()
    }
    for context in contexts.values():
        _run(context, prompt, new)  # reads the weights from disk
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contexts}
    for number in range(question["rounds"]):
        for name in contexts if number % 2 == 0 else reversed(list(contexts)):
            seconds[name].append(_run(contexts[name], prompt, new))
    return seconds


def _opened(path: str, num_tokens: int, num_threads: int) -> Any:
    """A context with llama.cpp's defaults that has room for so many tokens."""
    from cyllama.llama import llama_cpp as native

    native.llama_backend_init()
    parameters = native.LlamaContextParams()
    parameters.n_ctx = num_tokens
    parameters.n_batch = max(num_tokens, parameters.n_batch)
    parameters.n_threads = parameters.n_threads_batch = num_threads
    return native.LlamaContext(native.LlamaModel(path, native.LlamaModelParams()), parameters)


def _run(context: Any, prompt: Sequence[int], new: Sequence[int]) -> tuple[float, float]:
    """Seconds of the prompt and of the tokens after it, one at a time."""
    context.kv_cache_clear()
    context.synchronize()
    started = time.perf_counter()
    _decode(context, prompt, 0)
    prefilled = time.perf_counter()
    for number, token in enumerate(new):
        _decode(context, [token], len(prompt) + number)
    return prefilled - started, time.perf_counter() - prefilled


def _decode(context: Any, tokens: Sequence[int], position: int) -> None:
    from cyllama.llama import llama_cpp as native

    status = context.decode(native.llama_batch_get_one(list(tokens), position))
    if status != 0:
        raise RuntimeError(f"llama_decode returned {status} at token {position}")
    context.synchronize()


def _about() -> dict[str, str]:
    from cyllama.llama import llama_cpp as native

    return {
        "version": f"llama.cpp of cyllama {version('cyllama')}",
        "device": "gpu" if native.llama_supports_gpu_offload() else "cpu",
    }


if __name__ == "__main__":
    found = _main(json.load(sys.stdin))
    Path(sys.argv[1]).write_text(json.dumps({**_about(), "seconds": found}))
