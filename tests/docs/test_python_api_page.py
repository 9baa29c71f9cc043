"""docs/reference/python_api.md: its names exist, with the signatures that it gives."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.docs.pages import Page

PAGE = Page(ROOT / "docs/reference/python_api.md")
ROOMS = ("models", "shape", "costs", "calibration", "importance", "compensation", "scoring")


def documented(text: str) -> list[tuple[str, str]]:
    """Module and what an item of its list begins with: `name`, or `name(arguments)`, each once."""
    found, module = [], ""
    for block in re.split(r"\n(?=- |`|#|\n)", text):
        if named := re.fullmatch(r"`(multipruner|(?:pruning|workers)\.[\w.]+)`\s*", block):
            module = named[1]
        elif block.startswith("- "):
            head = block.partition("`:")[0].removeprefix("- ").lstrip("`")
            found += [(module, " ".join(each.split())) for each in head.split("`, `")]
    return found


NAMES = documented(PAGE.prose.partition("## Names")[2])


def signature(function: Callable[..., Any]) -> str:
    """As the page gives it: without types, `self` and `cls`."""
    given = inspect.signature(function)
    parameters = [
        each.replace(annotation=inspect.Parameter.empty)
        for name, each in given.parameters.items()
        if name not in ("self", "cls")
    ]
    return str(given.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def problem(module: str, item: str) -> str | None:
    name, _, arguments = item.partition("(")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        if not hasattr(found, part) and part not in getattr(found, "__dataclass_fields__", ()):
            return f"{module} has no {name}"
        found = getattr(found, part, None)
    if not arguments:
        return None
    given, real = f"({arguments}", signature(found)
    same = real.startswith(given[:-4]) if given.endswith(", ...)") else real == given
    return None if same else f"{module}.{name}{real}, not {given}"


@pytest.mark.parametrize(("module", "item"), NAMES, ids=lambda each: each.partition("(")[0])
def test_a_name_exists_with_the_signature_of_the_page(module: str, item: str) -> None:
    assert problem(module, item) is None


def test_every_room_that_a_program_needs_is_on_the_page() -> None:
    modules = {module for module, _ in NAMES}
    assert len(NAMES) > 90
    for room in (*ROOMS, "search", "export", "errors"):
        assert any(module.split(".")[1:2] == [room] for module in modules), room


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("reordered(loaded, order)", "has no reordered"),
        ("reorder(loaded)", "not (loaded)"),
        ("channel_order(loaded, importance, batches=None)", "batches=()"),
        ("ChannelOrder.saved(path)", "has no ChannelOrder.saved"),
    ],
)
def test_a_name_or_a_signature_that_is_not_so_is_found(item: str, said: str) -> None:
    text = f"`pruning.importance.channel_order`\n\n- `{item}`: a sentence.\n"
    [(module, found)] = documented(text)
    assert said in (problem(module, found) or "")
