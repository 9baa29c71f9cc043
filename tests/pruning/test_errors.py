from __future__ import annotations

import pytest

from pruning.errors import first_line


@pytest.mark.parametrize(
    ("said", "line"), [("one", "one"), ("\n  one \ntwo", "one "), (" \n", "ValueError")]
)
def test_an_exception_in_one_line(said: str, line: str) -> None:
    assert first_line(ValueError(said)) == line
