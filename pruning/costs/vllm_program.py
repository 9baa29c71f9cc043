"""Times checkpoints in vLLM, in turns: a program of `pruning.costs.vllm_speed`, which writes what
to do to its standard input, as JSON, and reads seconds from a file.

It runs in the Python that has vLLM and needs nothing of this project there.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_OWN = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
}
"""Unless the environment says something else. On CPUs as many threads as OMP_NUM_THREADS says.
Nothing listens on other interfaces than that of this machine.
"""


def _main(question: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    generator = random.Random(question["seed"])
    prompts = [
        [generator.randrange(question["vocab_size"]) for _ in range(question["prompt_tokens"])]
        for _ in range(question["batch_size"])
    ]
    sizes = {name: _weight_bytes(path) for name, path in question["models"].items()}
    whole = max(1, sum(sizes.values()))  # no weights at all are vLLM's to say
    models = {
        name: _opened(path, min(0.33, max(0.02, 0.9 * sizes[name] / whole)), question)
        for name, path in question["models"].items()
    }
    for model in models.values():
        _answer(model, prompts, 1)
        _answer(model, prompts, 1 + question["new_tokens"])
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for number in range(question["rounds"]):
        for name in models if number % 2 == 0 else reversed(list(models)):
            seconds[name].append(_run(models[name], prompts, question["new_tokens"]))
    return seconds


def _weight_bytes(path: str) -> int:
    return sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))


def _opened(path: str, gpu_share: float, question: Mapping[str, Any]) -> Any:
    """A model that takes at most that part of a GPU's memory."""
    from vllm import LLM

    return LLM(
        model=path,
        # A DeciLM folder has the code of its configuration, which this project has written.
        trust_remote_code=(Path(path) / "configuration_decilm.py").exists(),
        dtype=question["dtype"],
        max_model_len=question["prompt_tokens"] + question["new_tokens"] + 1,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        gpu_memory_utilization=gpu_share,
    )


def _run(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[float, float]:
    """Seconds of the prompts and of the tokens after them."""
    started = time.perf_counter()
    _answer(model, prompts, 1)
    prefilled = time.perf_counter()
    _answer(model, prompts, 1 + new_tokens)
    prefill_s = prefilled - started
    decode_s = time.perf_counter() - prefilled - prefill_s
    if decode_s <= 0:
        raise RuntimeError(
            f"{new_tokens} new tokens took no longer than none: the machine is too busy, or give "
            "more"
        )
    return prefill_s, decode_s


def _answer(model: Any, prompts: Sequence[Sequence[int]], num_tokens: int) -> None:
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False
    )
    asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    model.generate(asked, sampling, use_tqdm=False)


def _about() -> dict[str, str]:
    import vllm
    from vllm.platforms import current_platform as platform

    kind, name = platform.device_type, platform.get_device_name()
    return {
        "version": f"vLLM {vllm.__version__}",
        "device": kind if kind == name else f"{kind} {name}",
    }


if __name__ == "__main__":
    for variable, value in _OWN.items():
        os.environ.setdefault(variable, value)
    asked = json.load(sys.stdin)
    # On CPUs each model has GiB of cache, whole ones.
    room = str(1 + asked["cache_bytes"] // 2**30)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", room)
    found = _main(asked)
    # vLLM itself talks on standard output
    Path(sys.argv[1]).write_text(json.dumps({**_about(), "seconds": found}))
