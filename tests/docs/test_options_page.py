"""docs/reference/options.md: made from conf/ and the schemas, and complete."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

from pipelines.config.options import COMMANDS, options_of
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    path = ROOT / "docs/generate_options.py"
    spec = importlib.util.spec_from_file_location("generate_options", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_generator_makes(generator: ModuleType) -> None:
    assert generator.PAGE.read_text() == generator.page(), "run `make docs`"


def test_every_option_of_every_command_is_on_the_page(generator: ModuleType) -> None:
    page = generator.PAGE.read_text()
    names = {option.name for command in COMMANDS for option in options_of(command)}
    assert len(names) > 90
    assert [name for name in sorted(names) if f"- **`{name}`** (" not in page] == []


def test_defaults_that_differ_by_choice_are_named(generator: ModuleType) -> None:
    page = re.sub(r"\s+", " ", generator.page())
    assert "**`cluster.stall_timeout_s`** (number; default `600`; `1800` with ray)" in page
    assert "**`expected.source`** (text; required)" in page
    assert "**`export`** (one of transformers, decilm, gguf or null; default `null`)" in page
