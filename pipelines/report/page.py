"""The page of a report: sections of text, tables and charts, as one HTML file that needs nothing
else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs


@dataclass(frozen=True, slots=True)
class RunLabel:
    """How a run is named in a table: its key on its colour, and its name where there is room."""

    key: str
    color: str
    name: str = ""

    @property
    def text_color(self) -> str:
        """White on dark colours, black on light ones."""
        red, green, blue = (int(self.color[start : start + 2], 16) for start in (1, 3, 5))
        return "#fff" if 0.3 * red + 0.59 * green + 0.11 * blue < 130 else "#000"


Cell = str | RunLabel


@dataclass(frozen=True, slots=True)
class Table:
    """Numbers as text.

    Args:
        align: one letter a column: `l`, `r`, `t` for sentences, or `w` for what may break anywhere,
            such as paths.
        is_result: the numbers of the first screen, which a narrow one has room for.
    """

    columns: tuple[str, ...]
    align: str
    rows: tuple[tuple[Cell, ...], ...]
    is_result: bool = False
    kind: str = field(default="table", init=False)

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) == len(self.align) for row in self.rows), (
            self.columns
        )


@dataclass(frozen=True, slots=True)
class Chart:
    """A Plotly figure.

    Args:
        text: what it shows, in words, for those who do not see it.
        wide: takes the whole width where others stand side by side.
    """

    id: str
    title: str
    text: str
    figure: dict[str, Any]
    height: int = 380
    wide: bool = True
    kind: str = field(default="chart", init=False)


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = field(default="text", init=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, above everything else."""

    text: str
    kind: str = field(default="verdict", init=False)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Texts as they are, which compare: (title, text) each."""

    texts: tuple[tuple[str, str], ...]
    kind: str = field(default="side_by_side", init=False)


@dataclass(frozen=True, slots=True)
class Heading:
    """What follows is about one run, or one thing."""

    text: str
    label: RunLabel | None = None
    kind: str = field(default="heading", init=False)


@dataclass(frozen=True, slots=True)
class Folded:
    """Parts that open on a click."""

    title: str
    parts: tuple[Part, ...]
    kind: str = field(default="folded", init=False)


Part = Table | Chart | Text | Verdict | SideBySide | Heading | Folded


@dataclass(frozen=True, slots=True)
class Section:
    """The first one of a page is open, and the others fold."""

    id: str
    title: str
    parts: tuple[Part, ...]


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page. The same content makes the same bytes.

    Scripts run only if their hash is in the page's security policy, which also forbids to load
    anything from anywhere: what a folder's name or a file could smuggle in, were it not escaped,
    would not run.
    """
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    library, script = get_plotlyjs(), (folder / "page.js").read_text(encoding="utf-8")
    figures = {chart.id: chart.figure for section in sections for chart in _charts(section.parts)}
    return environment.get_template("page.html.j2").render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        library=library,
        script=script,
        figures=figures,
        hashes=[_hash(library), _hash(script)],
    )


def _charts(parts: Sequence[Part]) -> list[Chart]:
    return [
        chart
        for part in parts
        for chart in (
            [part]
            if isinstance(part, Chart)
            else _charts(part.parts)
            if isinstance(part, Folded)
            else []
        )
    ]


def _hash(script: str) -> str:
    """As a Content-Security-Policy names a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
