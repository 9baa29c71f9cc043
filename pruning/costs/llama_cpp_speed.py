"""How fast exported models are in llama.cpp, where that is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pruning.costs import llama_cpp_program
from pruning.costs.measured import ROLES, Role
from pruning.costs.speed import SpeedSettings, Spread

_Runs = Sequence[tuple[float, float]]
"""Seconds of the prefill and of the decoding, a pair a round."""


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """Tokens per second; of a ratio, pruned / dense within each round."""

    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread


@dataclass(frozen=True, slots=True)
class EngineComparison:
    """Speeds of the models, and their ratio where both were measured."""

    settings: SpeedSettings
    num_threads: int
    dense: EngineSpeed | None
    pruned: EngineSpeed | None
    ratio: EngineSpeed | None

    @classmethod
    def of(
        cls, runs: Mapping[Role, _Runs], settings: SpeedSettings, *, num_threads: int
    ) -> EngineComparison:
        """What rounds come to; each has its times of all models."""
        tokens = (settings.prompt_tokens, settings.new_tokens)
        speeds = {role: _speed([tokens] * len(each), each) for role, each in runs.items()}
        ratio = _speed(runs["dense"], runs["pruned"]) if len(runs) == len(ROLES) else None
        return cls(settings, num_threads, speeds.get("dense"), speeds.get("pruned"), ratio)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def llama_cpp_speed(
    files: Mapping[Role, Path], settings: SpeedSettings, *, vocab_size: int, num_threads: int
) -> EngineComparison:
    """Measures the files in turns, dense, pruned, pruned, dense and so on, after a run of each that
    is not timed, in a process of its own: a crash of native code is an answer too.

    A run is one forward of the prompt and one of each new token after it, with llama.cpp's
    defaults. The tokens are random, and the same for all.

    Args:
        files: GGUF files, all in memory together.
        settings: of one sequence.

    Raises:
        RuntimeError: llama.cpp cannot open or run a file; the message ends with what it said.
    """
    question = {
        "files": {role: str(path.resolve()) for role, path in files.items()},
        "prompt_tokens": settings.prompt_tokens,
        "new_tokens": settings.new_tokens,
        "rounds": settings.rounds,
        "seed": settings.seed,
        "vocab_size": vocab_size,
        "num_threads": num_threads,
    }
    done = subprocess.run(
        # not "-I", which sees no packages that a user has installed for himself
        [sys.executable, "-P", llama_cpp_program.__file__],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr.splitlines() or ["nothing"])[-1]
        names = " or ".join(path.name for path in files.values())
        raise RuntimeError(
            f"llama.cpp cannot run {names} (it ended with {done.returncode}): {said}"
        )
    runs = json.loads(done.stdout.splitlines()[-1])
    return EngineComparison.of(runs, settings, num_threads=num_threads)


def _speed(amounts: _Runs, seconds: _Runs) -> EngineSpeed:
    """Amount / seconds of the two phases."""
    pairs = list(zip(amounts, seconds, strict=True))
    return EngineSpeed(*(Spread.of(of[i] / by[i] for of, by in pairs) for i in (0, 1)))
