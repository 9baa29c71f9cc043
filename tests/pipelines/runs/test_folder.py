"""The record of a run has all that anybody added."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipelines.runs.folder import RunFolder


def test_threads_add_to_the_record_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow says its id from a thread of its own."""
    read = RunFolder.read

    def slowly(folder: RunFolder, name: str) -> dict[str, Any] | None:
        found = read(folder, name)
        time.sleep(0.05)
        return found

    monkeypatch.setattr(RunFolder, "read", slowly)
    with RunFolder(str(tmp_path)) as folder:
        folder.claim({"model": "m"})
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda number: folder.remember(**{f"f{number}": number}), range(4)))
        record = read(folder, "run.json")
    assert record is not None
    assert {name: record[name] for name in record if name.startswith("f")} == {
        f"f{number}": number for number in range(4)
    }
