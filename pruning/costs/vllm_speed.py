"""How fast exported models are in vLLM, where that is installed: here, or in an environment of its
own, whose Python a variable names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pruning.costs import vllm_program
from pruning.costs.engine_speed import EngineRuns, timed
from pruning.costs.speed import SpeedSettings
from pruning.errors import InputError

PYTHON_VARIABLE = "MULTIPRUNER_VLLM_PYTHON"


def vllm_python() -> str:
    """The Python that has vLLM.

    Raises:
        InputError: there is none, or not where the variable says.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    python = named or sys.executable
    script = "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"
    try:
        found = subprocess.run([python, "-P", "-c", script], capture_output=True, check=False)
    except OSError as error:
        raise InputError(
            f"{PYTHON_VARIABLE}: cannot run {python}: {error.strerror}; give the Python that has "
            "vLLM"
        ) from error
    if found.returncode == 0:
        return python
    if named:
        raise InputError(f"{PYTHON_VARIABLE}: {python} has no vLLM; give the Python that has it")
    raise InputError(
        "vLLM is not installed here; install it, or give the Python that has it in the environment "
        f"variable {PYTHON_VARIABLE}"
    )


def vllm_runs(
    folders: Mapping[str, Path],
    settings: SpeedSettings,
    *,
    vocab_size: int,
    num_threads: int,
    dtype: str,
    cache_bytes: int = 0,
) -> EngineRuns:
    """A run answers the prompts with one token, which is the prefill, and then again with one more
    than the new ones: what that takes longer is the decoding. With vLLM's defaults, on the device
    that it takes, without its cache of prefixes. Models share 0.9 of a GPU's memory by the size of
    their weights, of which none gets more than a third.

    Args:
        folders: checkpoints, by name.
        dtype: that vLLM computes in.
        cache_bytes: of keys and values of the whole batch, for which each model has room on a CPU.

    Raises:
        InputError: vLLM is not there.
        RuntimeError: it cannot open or run a model; the message ends with what it said.
    """
    return timed(
        "vLLM",
        [vllm_python(), "-P", vllm_program.__file__],
        folders,
        settings,
        vocab_size=vocab_size,
        num_threads=num_threads,
        dtype=dtype,
        cache_bytes=cache_bytes,
    )
