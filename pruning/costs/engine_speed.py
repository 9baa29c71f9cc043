"""How fast exported models are in other engines than transformers, and what all of those share: a
program of ours times the models in turns in a process of its own, whose crash is an answer too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pruning.costs.measured import ROLES
from pruning.costs.speed import SpeedSettings, Spread

_ERROR = re.compile(r"(?:^|\s)(?:\w+\.)*\w+(?:Error|Exception): \S")
"""As Python says one, after whatever a logger has put before it."""

Runs = Sequence[tuple[float, float]]
"""Seconds of the prefill and of the decoding, a pair a round."""


@dataclass(frozen=True, slots=True)
class EngineRuns:
    """What an engine measured, and what it says of itself.

    Args:
        version: of what ran the models, with its name.
        device: kind of device that they ran on, such as `cpu`.
        seconds: of each model.
    """

    version: str
    device: str
    seconds: Mapping[str, Runs]


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """Tokens per second of all sequences; of a ratio, pruned / dense within each round."""

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
        cls, runs: Mapping[str, Runs], settings: SpeedSettings, *, num_threads: int
    ) -> EngineComparison:
        """What rounds come to; each has its times of all models, which have roles for names."""
        tokens = (
            settings.batch_size * settings.prompt_tokens,
            settings.batch_size * settings.new_tokens,
        )
        speeds = {role: _speed([tokens] * len(each), each) for role, each in runs.items()}
        ratio = _speed(runs["dense"], runs["pruned"]) if len(runs) == len(ROLES) else None
        return cls(settings, num_threads, speeds.get("dense"), speeds.get("pruned"), ratio)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def timed(
    engine: str,
    command: Sequence[str],
    models: Mapping[str, Path],
    settings: SpeedSettings,
    *,
    vocab_size: int,
    num_threads: int,
    **more: Any,
) -> EngineRuns:
    """Measures models in turns, in one order in a round and in the opposite one in the next, after
    a run of each that is not timed. The tokens are random, and the same for all.

    Args:
        command: the program, which reads what to do from its standard input, as JSON, and writes
            an `EngineRuns` to the file that it is given.
        models: files or folders by name, all in memory together.
        more: that this engine's program is told, and that settings do not have.

    Raises:
        RuntimeError: the engine cannot open or run a model; the message ends with what it said.
    """
    question = {
        "models": {name: str(path.resolve()) for name, path in models.items()},
        "batch_size": settings.batch_size,
        "prompt_tokens": settings.prompt_tokens,
        "new_tokens": settings.new_tokens,
        "rounds": settings.rounds,
        "seed": settings.seed,
        "vocab_size": vocab_size,
        "num_threads": num_threads,
        **more,
    }
    with tempfile.TemporaryDirectory() as scratch:
        answer, said = Path(scratch) / "seconds.json", Path(scratch) / "said"
        status = _run(
            [*command, str(answer)],
            json.dumps(question),
            {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            | {"OMP_NUM_THREADS": str(num_threads)},
            said,
        )
        if status != 0 or not answer.exists():
            names = " or ".join(path.name for path in models.values())
            if len(models) > len(ROLES):
                names = f"one of {len(models)} models"
            what = _cause(said.read_text(encoding="utf-8", errors="replace"))
            raise RuntimeError(f"{engine} cannot run {names} (it ended with {status}): {what}")
        return EngineRuns(**json.loads(answer.read_text()))


def _run(command: Sequence[str], question: str, environment: Mapping[str, str], said: Path) -> int:
    """Exit status of a program. What it has started itself ends with it."""
    with said.open("wb") as errors:
        program = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            program.communicate(question.encode())
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()
    return program.returncode


def _cause(said: str) -> str:
    """The line that says most of why a program failed: of the errors the first, as others follow
    from it, else the last line.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.search(line)]
    return (errors or lines[-1:] or ["nothing"])[0]


def _speed(amounts: Runs, seconds: Runs) -> EngineSpeed:
    """Amount / seconds of the two phases."""
    pairs = list(zip(amounts, seconds, strict=True))
    return EngineSpeed(*(Spread.of(of[i] / by[i] for of, by in pairs) for i in (0, 1)))
