"""A node whose memory is full: Ray's own monitor kills the evaluator that took it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from workers.tasks import EvaluatorSpec

SPARE_BYTES = 5 * 10**9
"""What an evaluator may take before the monitor steps in: more than other processes of the machine
may come to need meanwhile.
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="Ray's memory monitor is for Linux"
)
def test_an_evaluator_that_fills_the_memory_is_replaced(
    spec: EvaluatorSpec, token_file: Path
) -> None:
    memory = psutil.virtual_memory()
    if memory.available < 2 * SPARE_BYTES:
        pytest.skip(f"needs {2 * SPARE_BYTES / 1e9:.0f} GB of free memory")
    threshold = (memory.total - memory.available + SPARE_BYTES) / memory.total
    settings = {
        "RAY_worker_niceness": "0",
        "RAY_memory_monitor_refresh_ms": "50",
        "RAY_memory_usage_threshold": f"{threshold:.3f}",
        "PYTHONPATH": str(ROOT),
    }
    arguments = [str(spec.checkpoint.folder), str(token_file)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.workers.pool.swelling", *arguments],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert outcome["equal"]
    assert outcome["faults"].pop("out of memory") == 1, outcome
    assert set(outcome["faults"]) <= {"start failed"}, (
        "its successor may come while the memory is still full, and is killed as well"
    )
    assert outcome["lost_evaluations"] >= 1
