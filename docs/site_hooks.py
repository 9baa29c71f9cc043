"""What mkdocs needs to know of this repository: pages and pictures that lie outside of docs/.

GitHub shows them where they are. The site has them under `repository/`, and links are rewritten.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "experiments/*/README.md",
    "experiments/*/*.png",
    "experiments/benchmarks/results/*.md",
)
_LINK = re.compile(r"(?<=\]\()[^)\s:]+|(?<=\]: )[^\s:]+$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files of `OUTSIDE`."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, _place(path), abs_src_path=str(path)))
    return files


def on_page_markdown(
    markdown: str,
    page: Page,
    config: MkDocsConfig,  # noqa: ARG001 - mkdocs gives it
    files: Files,  # noqa: ARG001
) -> str:
    """Rewrites links between docs/ and the rest of the repository to where the site has both."""
    source = Path(page.file.abs_src_path or "")
    here = os.path.dirname(page.file.src_uri)  # noqa: PTH120 - an address, not a path

    def moved(link: re.Match[str]) -> str:
        name, mark, anchor = link[0].partition("#")
        target = (source.parent / name).resolve()
        if not name or not target.is_file():
            return link[0]
        return os.path.relpath(_place(target), here or ".") + mark + anchor

    return _LINK.sub(moved, markdown)


def _place(path: Path) -> str:
    """Where the site has a file of the repository."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return f"repository/{path.relative_to(ROOT).as_posix()}"
