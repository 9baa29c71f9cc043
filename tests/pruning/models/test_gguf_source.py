"""GGUF files as the source of a model: which are converted anew, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pruning.errors import InputError
from pruning.models import gguf_source


def test_a_gguf_is_converted_anew_by_another_converter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused today must not come from yesterday's cache."""
    (tmp_path / "a.gguf").write_bytes(b"x")
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_source, "_convert_gguf", lambda *_: None)
    folders = {gguf_source.converted_gguf(tmp_path / "a.gguf") for _ in range(2)}
    assert len(folders) == 1
    monkeypatch.setattr(gguf_source, "_CONVERTER", 0)
    folders.add(gguf_source.converted_gguf(tmp_path / "a.gguf"))
    monkeypatch.setattr(gguf_source, "version", lambda name: f"another {name}")
    folders.add(gguf_source.converted_gguf(tmp_path / "a.gguf"))
    assert len(folders) == 3


@pytest.mark.parametrize("content", [b"", b"a page of HTML", b"GGUF" + bytes(40)])
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^model\.path: .*a\.gguf is not a GGUF, or not a whole"):
        gguf_source._gaps(path)
