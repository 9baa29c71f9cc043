"""How fast exported models are in llama.cpp, where that is installed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from pruning.costs import llama_cpp_program
from pruning.costs.engine_speed import EngineRuns, timed
from pruning.costs.speed import SpeedSettings


def llama_cpp_runs(
    files: Mapping[str, Path], settings: SpeedSettings, *, vocab_size: int, num_threads: int
) -> EngineRuns:
    """A run is one forward of the prompt and one of each new token after it, with llama.cpp's
    defaults; see `timed`.

    Args:
        files: GGUF files, by name.
        settings: of one sequence.

    Raises:
        RuntimeError: llama.cpp cannot open or run a file; the message ends with what it said.
    """
    return timed(
        "llama.cpp",
        # not "-I", which sees no packages that a user has installed for himself
        [sys.executable, "-P", llama_cpp_program.__file__],
        files,
        settings,
        vocab_size=vocab_size,
        num_threads=num_threads,
    )
