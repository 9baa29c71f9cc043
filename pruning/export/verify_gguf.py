"""Opens an exported GGUF in llama.cpp itself, where that is installed, and says how far its logits
are from those of the masked model.

`verify_gguf` runs this very file as a program, in a fresh process: a crash of native code is an
answer too. llama.cpp comes with `cyllama`, whose wheels are small and need nothing else.

Shape letters: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:  # the program needs no torch, which takes longer to import than it takes to run
    import torch

PACKAGE, KNOWN = "cyllama", "0.2."

_GGML_TYPES = {"f32": 0, "f16": 1}


def has_llama_cpp() -> bool:
    """Whether this Python has a llama.cpp whose interface is known here."""
    try:
        return importlib.metadata.version(PACKAGE).startswith(KNOWN)
    except importlib.metadata.PackageNotFoundError:
        return False


def verify_gguf(
    path: Path,
    input_ids_BT: torch.Tensor,
    logits_BTV: torch.Tensor,
    tolerance: float,
    *,
    num_threads: int,
) -> dict[str, float]:
    """Feeds llama.cpp the sequences token by token, so that all but the first logits come from the
    cache, and compares.

    Args:
        logits_BTV: of the masked model, any floating type.
        tolerance: what is allowed. llama.cpp rounds activations to the type of the weights in each
            product.
        num_threads: no more than there are idle cores, or they wait for each other.

    Returns:
        `difference` of the logits relative to the largest one (at least 1), and the `tolerance`.

    Raises:
        RuntimeError: llama.cpp cannot open the file; the message ends with what it said.
    """
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch) / "probe.safetensors"
        save_file(
            {
                "input_ids": input_ids_BT.contiguous().numpy(),
                "logits": logits_BTV.float().cpu().contiguous().numpy(),
            },
            probe,
        )
        command = [
            sys.executable,
            "-I",
            str(Path(__file__).resolve()),
            str(path.resolve()),
            str(probe),
            str(num_threads),
        ]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (
            [line for line in done.stderr.splitlines() if "error" in line.lower()]
            or done.stderr.splitlines()[-1:]
            or ["nothing"]
        )
        raise RuntimeError(
            f"llama.cpp cannot open {path} (it ended with {done.returncode}): {said[0]}"
        )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found | {"tolerance": tolerance}


def opened(
    path: str, num_tokens: int, *, num_threads: int = 1, cache: str = "f32"
) -> tuple[Any, Callable[[int, int], NDArray[np.float32]]]:
    """llama.cpp's vocabulary of a file, and a function of a token and its position that gives the
    logits [V] after it.

    Args:
        num_tokens: room in the cache.
        cache: type of the keys and values in it, `f32` or `f16`.
    """
    from cyllama.llama import llama_cpp as native

    class Model(native.LlamaModel):  # type: ignore[misc]
        """0.2.18 asks its model for a number that it lacks."""

        @property
        def n_vocab(self) -> int:
            return int(self.get_vocab().n_vocab)

    native.llama_backend_init()
    model = Model(path, native.LlamaModelParams())
    parameters = native.LlamaContextParams()
    parameters.n_ctx = num_tokens
    parameters.n_threads = parameters.n_threads_batch = num_threads
    parameters.type_k = parameters.type_v = _GGML_TYPES[cache]
    parameters.flash_attn_type = 0  # off: it rounds to half precision whatever the cache holds
    context = native.LlamaContext(model, parameters)

    def step(token: int, position: int) -> NDArray[np.float32]:
        status = context.decode(native.llama_batch_get_one([token], position))
        if status != 0:
            raise RuntimeError(f"error: llama_decode returned {status} at token {position}")
        return np.array(context.get_logits(), dtype=np.float32)

    return model.get_vocab(), step


def _main(path: str, probe: str, num_threads: str) -> None:
    tensors = load_file(probe)
    wanted_BTV = tensors["logits"]
    worst = 0.0
    for ids, wanted_TV in zip(tensors["input_ids"].tolist(), wanted_BTV, strict=True):
        _, step = opened(path, max(64, len(ids)), num_threads=int(num_threads))
        worst = max(
            worst,
            *(
                float(np.abs(step(token, position) - wanted_TV[position]).max())
                for position, token in enumerate(ids)
            ),
        )
    sys.stdout.write(json.dumps({"difference": worst / max(1.0, float(np.abs(wanted_BTV).max()))}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
