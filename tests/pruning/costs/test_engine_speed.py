"""What an engine's program is asked, what its rounds come to, and what is said where it fails."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pruning.costs.engine_speed import EngineComparison, EngineRuns, EngineSpeed, timed
from pruning.costs.speed import SpeedSettings, Spread
from tests.cluster.scene import eventually

SETTINGS = SpeedSettings(batch_size=1, prompt_tokens=6, new_tokens=3, rounds=2)


def test_figures_of_rounds() -> None:
    """The machine is twice as slow in the second round."""
    runs: Any = {"dense": [(2.0, 1.0), (4.0, 2.0)], "pruned": [(1.0, 0.75), (2.0, 1.0)]}
    found = EngineComparison.of(runs, SETTINGS, num_threads=5)
    assert found.dense == EngineSpeed(Spread(2.25, 1.5, 3), Spread(2.25, 1.5, 3))
    assert found.pruned == EngineSpeed(Spread(4.5, 3, 6), Spread(3.5, 3, 4))
    assert found.ratio is not None
    assert found.ratio.prefill_tokens_per_s == Spread(2, 2, 2)
    assert found.ratio.decode_tokens_per_s.lowest == pytest.approx(4 / 3)
    assert found.ratio.decode_tokens_per_s.highest == 2
    assert found.num_threads == 5
    alone = EngineComparison.of({"dense": runs["dense"]}, SETTINGS, num_threads=5)
    assert (alone.dense, alone.pruned, alone.ratio) == (found.dense, None, None)
    both = EngineComparison.of(runs, replace(SETTINGS, batch_size=2), num_threads=5)
    assert both.dense == EngineSpeed(Spread(4.5, 3, 6), Spread(4.5, 3, 6))
    assert both.ratio == found.ratio


def run(program: str, folder: Path) -> EngineRuns:
    path = folder / "program.py"
    path.write_text(f"import json, os, sys\nasked = json.load(sys.stdin)\n{program}")
    models: Any = {"dense": folder / "d", "pruned": folder / "p"}
    command = [sys.executable, str(path)]
    return timed("Engine", command, models, SETTINGS, vocab_size=9, num_threads=3, dtype="float16")


def test_a_program_is_told_everything_and_answers_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What it says besides is not for users, and it finds no modules of this Python's path."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OF_THE_USER", "kept")
    program = """
print("an engine that talks")
assert asked == {
    "models": {"dense": FOLDER + "/d", "pruned": FOLDER + "/p"}, "batch_size": 1,
    "prompt_tokens": 6, "new_tokens": 3, "rounds": 2, "seed": asked["seed"], "vocab_size": 9,
    "num_threads": 3, "dtype": "float16",
}
assert os.environ["OMP_NUM_THREADS"] == "3"
assert os.environ["OF_THE_USER"] == "kept"
assert "PYTHONPATH" not in os.environ
seconds = {"dense": [[3, 1], [3, 1]], "pruned": [[1, 1], [1, 1]]}
json.dump({"version": "Engine 1", "device": "cpu", "seconds": seconds}, open(sys.argv[1], "w"))
"""
    found = run(program.replace("FOLDER", repr(str(tmp_path.resolve()))), tmp_path)
    assert (found.version, found.device) == ("Engine 1", "cpu")
    assert found.seconds == {"dense": [[3, 1], [3, 1]], "pruned": [[1, 1], [1, 1]]}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("raise SystemExit('a\\nno such layer')", r"it ended with 1\): no such layer$"),
        ("pass", r"it ended with 0\): nothing$"),
        (
            "sys.stderr.buffer.write(b'no \\xff\\n'); raise SystemExit(3)",
            "it ended with 3\\): no \ufffd$",
        ),
        ("os.kill(os.getpid(), 9)", r"it ended with -9\): nothing$"),
        (
            "sys.stderr.write('(Core) 09:12 ERROR core.py:9] ValueError: no room\\n'"
            "'RuntimeError: it failed, see above\\n'); raise SystemExit(3)",
            r"it ended with 3\): \(Core\) 09:12 ERROR core.py:9\] ValueError: no room$",
        ),
    ],
)
def test_an_engine_that_fails_is_named_with_what_it_said(
    program: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=rf"^Engine cannot run d or p \({message}"):
        run(program, tmp_path)


def test_what_an_engine_has_started_ends_with_it(tmp_path: Path) -> None:
    """Also where it holds what the program says, and the program is gone."""
    program = f"""
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
os.kill(os.getpid(), 9)
"""
    with pytest.raises(RuntimeError, match="it ended with -9"):
        run(program, tmp_path)
    child = int((tmp_path / "child").read_text())
    eventually(lambda: not is_running(child), "the child has ended")


def test_an_engine_ends_with_what_waits_for_it(tmp_path: Path) -> None:
    """As where a user presses Ctrl-C. It is not left as a zombie either."""
    written = tmp_path / "id"

    def interrupt() -> None:
        eventually(lambda: written.exists() and bool(written.read_text()), "it runs")
        os.kill(os.getpid(), signal.SIGUSR1)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            run(
                f"import time\nopen({str(written)!r}, 'w').write(str(os.getpid()))\n"
                "time.sleep(300)",
                tmp_path,
            )
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not psutil.pid_exists(int(written.read_text()))


def is_running(process: int) -> bool:
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE
