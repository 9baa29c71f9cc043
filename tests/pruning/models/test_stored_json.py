from __future__ import annotations

from pathlib import Path

import pytest

from pruning.errors import InputError
from pruning.models.stored_json import read_json


def test_an_object_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "ü"}', encoding="utf-8")
    assert read_json(tmp_path / "config.json") == {"model_type": "ü"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[1]", "it holds a list, and should hold an object"),
        (b"{", "Expecting property name"),
        (b"\xff", "can't decode byte 0xff"),
        (None, "No such file or directory"),
    ],
)
def test_what_is_no_object_is_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_json(path)
    message = str(raised.value)
    assert message.startswith(f"model.path: cannot read {path}: ")
    assert said in message
    assert message.endswith("; give the folder of a whole model")
