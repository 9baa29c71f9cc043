"""The Markdown files of the repository: their links, headings, tables and code."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)", re.MULTILINE)
_FENCE = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Page:
    """One file."""

    path: Path

    def __str__(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        """Without blocks of code."""
        return _FENCE.sub("", self.text)

    @property
    def code(self) -> list[str]:
        """Lines of the blocks of code; what ends in a backslash goes on in the next line."""
        blocks = (found[1] for found in _FENCE.finditer(self.text))
        return [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]

    @property
    def links(self) -> list[str]:
        return [found[1] or found[2] for found in _LINK.finditer(self.prose)]

    @property
    def anchors(self) -> set[str]:
        """Of its headings, as GitHub and mkdocs make them where both agree."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {anchor_of(heading) for heading in headings}

    def tables(self) -> Iterator[tuple[str, list[list[str]]]]:
        """The heading above each table, and its rows without the first."""
        heading, rows = "", list[list[str]]()
        for line in [*self.prose.splitlines(), ""]:
            if line.startswith("|"):
                rows.append([cell.strip() for cell in line.strip("|").split("|")])
            elif rows:
                yield heading, rows[2:]
                rows = []
            if line.startswith("#"):
                heading = line.lstrip("# ")


def anchor_of(heading: str) -> str:
    """GitHub's name of a heading.

    Raises:
        ValueError: mkdocs gives it another name, so that one of the two would not find it.
    """
    words = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
    github, mkdocs = re.sub(r"\s", "-", words), re.sub(r"[-\s]+", "-", words)
    if github != mkdocs:
        raise ValueError(f"heading {heading!r} is #{github} on GitHub and #{mkdocs} on the site")
    return github


def tracked_pages() -> list[Page]:
    """Every Markdown file that git knows."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [Page(ROOT / name) for name in listed.stdout.splitlines() if (ROOT / name).exists()]


PAGES = tracked_pages()
