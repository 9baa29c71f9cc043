"""How fast exported models are in vLLM, where that is installed: here, or in an environment of its
own, whose Python a variable names.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pruning.costs import vllm_program
from pruning.costs.engine_speed import EngineComparison, timed
from pruning.costs.measured import Role
from pruning.costs.speed import SpeedSettings

PYTHON_VARIABLE = "MULTIPRUNER_VLLM_PYTHON"


def vllm_python() -> str | None:
    """The Python that has vLLM; None: none is known."""
    if named := os.environ.get(PYTHON_VARIABLE):
        return named if Path(named).is_file() else None
    return sys.executable if importlib.util.find_spec("vllm") else None


def vllm_speed(
    folders: Mapping[Role, Path],
    settings: SpeedSettings,
    *,
    vocab_size: int,
    num_threads: int,
    dtype: str,
) -> EngineComparison:
    """A run answers the prompts with one token, which is the prefill, and then again with one more
    than the new ones: what that takes longer is the decoding. With vLLM's defaults, on the device
    that it takes, without its cache of prefixes, and with a third of a GPU's memory for each model.

    Args:
        folders: checkpoints.
        dtype: that vLLM computes in.

    Raises:
        RuntimeError: vLLM is not there, or cannot open or run a model; the message ends with what
            it said.
    """
    python = vllm_python()
    if python is None:
        raise RuntimeError("vLLM is not installed here")
    return timed(
        "vLLM",
        [python, "-P", vllm_program.__file__],
        folders,
        settings,
        vocab_size=vocab_size,
        num_threads=num_threads,
        dtype=dtype,
    )
