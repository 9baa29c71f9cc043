"""What every export for transformers must show in a process that has nothing of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TOLERANCE = 1e-5


def opened_by_stock(folders: Iterable[Path], scratch: Path) -> dict[str, dict[str, Any]]:
    """What `stock.py` finds in each folder, by the folder's name. Each holds `probe.safetensors`.

    Args:
        scratch: a folder for the code that transformers copies there.
    """
    environment = os.environ | {
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    script = Path(__file__).with_name("stock.py")
    done = subprocess.run(
        [sys.executable, "-I", script, *map(str, folders)],
        env=environment,
        cwd=scratch,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return {Path(folder).name: results for folder, results in found.items()}


def check_opened(found: Mapping[str, Any], *, code: set[str]) -> None:
    """Logits are those of the masked model, each way of generating gives what the uncached one
    does, and what is saved again opens again.

    Args:
        code: files of code that are in the folder.
    """
    assert found["logits"] <= TOLERANCE
    assert found["eager"] <= TOLERANCE
    for way in ("greedy", "left_padded", "left_padded_row", "beam", "static_cache"):
        assert found[way] <= 1e-4, way
    assert found["saved_again"] <= TOLERANCE
    assert {"config.json", "model.safetensors", *code} <= set(found["files"])
    assert found["base_model"] == 0
    assert found["module"].startswith("transformers_modules.")
    assert "trust_remote_code=True" in found["without_trust"]
