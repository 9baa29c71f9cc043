"""The Markdown files: short lines, living links, paths that exist, options that are understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipelines.config.grid import as_grid
from pipelines.config.overrides import override_problems
from pipelines.config.schemas import register
from tests.conftest import ROOT
from tests.docs.pages import PAGES, Page, anchor_of

COMMANDS = (
    "prune", "sweep", "plan", "solve", "latency", "evaluate", "export", "report", "reproduce",
)  # fmt: skip
FOLDERS = "multipruner|pipelines|pruning|workers|conf|experiments|docker|docs|tests"


def dead_links(page: Page) -> list[str]:
    dead = []
    for link in page.links:
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        if not target.exists() or (anchor and anchor not in Page(target).anchors):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_relative_link_and_anchor_is_alive(page: Page) -> None:
    assert dead_links(page) == []


def test_a_dead_link_and_a_dead_anchor_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# One\n\n[a](#one) [b](#two) [c](b.md) ![d](a.md#one)\n\n[e]: c.md\n")
    assert dead_links(Page(path)) == ["#two", "b.md", "c.md"]


def test_a_heading_that_github_and_mkdocs_call_differently_is_refused() -> None:
    assert anchor_of("2. The `two` pictures") == "2-the-two-pictures"
    with pytest.raises(ValueError, match="this & that"):
        anchor_of("this & that")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_line_is_longer_than_100_columns(page: Page) -> None:
    lines = enumerate(page.text.splitlines(), start=1)
    assert [(number, len(line)) for number, line in lines if len(line) > 100] == []


def test_the_readme_has_at_most_120_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_path_in_code_type_exists(page: Page) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", page.prose)
    found = [name for name in named if name != "docker/.env" and not re.search("[A-Z]{4}", name)]
    assert [name for name in found if not (ROOT / name).exists()] == []


def citations() -> list[tuple[str, str, str]]:
    """File, page and heading of what docstrings and comments cite, as in method.md, "Score"."""
    found = []
    for folder in ("pruning", "workers", "pipelines", "multipruner", "experiments", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = re.sub(r"\s*\n\s*#?\s*", " ", path.read_text())
            cited = re.findall(r'(docs/[\w/]+\.md)(?:, "([^"\n]+)")?', text)
            found += [(path.relative_to(ROOT).as_posix(), *each) for each in cited]
    return found


def test_every_page_and_heading_that_the_code_cites_exists() -> None:
    cited = citations()
    assert sum(bool(heading) for _, _, heading in cited) >= 10
    dead = [
        each
        for each in cited
        if not (ROOT / each[1]).is_file()
        or (each[2] and anchor_of(each[2]) not in Page(ROOT / each[1]).anchors)
    ]
    assert dead == []


def test_every_test_that_the_faults_name_exists() -> None:
    [rows] = [rows for heading, rows in Page(ROOT / "docs/operate/faults.md").tables()]
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row[-1])]
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert len(rows) >= 18
    assert [row[0] for row in rows if not row[-1]] == []
    assert [name for name in names if name.removeprefix("make ") not in files | targets] == []


def test_every_place_that_the_architecture_names_exists() -> None:
    tables = dict(Page(ROOT / "docs/design/architecture.md").tables())
    rows = tables["Where things are"]
    assert len(rows) == 12
    for _, folder, files in rows:
        for name in re.findall(r"`([^`]+)`", files):
            assert (ROOT / folder.strip("`") / name).is_file(), f"{folder} {name}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_make_target_exists(page: Page) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = [name for line in page.code for name in re.findall(r"^make ([a-z-]+)", line)]
    found += re.findall(r"`make ([a-z-]+)", page.prose)
    assert set(found) <= targets


def commands(page: Page) -> list[tuple[str, list[str]]]:
    """The commands of its blocks of code, each as name and options."""
    found = []
    for line in page.code:
        if not line.lstrip().startswith(("multipruner ", "python -m ")):
            continue
        words = shlex.split(re.sub(r"\s+# .*| \.\.\.", "", line))
        name = words[1] if words[:1] == ["multipruner"] and len(words) > 1 else ""
        if words[:2] == ["python", "-m"] and words[2].startswith("pipelines."):
            name, words = words[2].removeprefix("pipelines."), words[1:]
        if name in COMMANDS:
            found.append((name, [word for word in words[2:] if "=" in word]))
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=str)
def test_every_command_is_understood(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIPRUNER_STORE_URL", "postgresql://me@db/scores")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    register()
    for name, options in commands(page):
        multirun = any("," in word and "[" not in word for word in options)
        words = as_grid(options) if name in ("sweep", "plan", "solve") else options
        assert multirun or override_problems(name, words) == [], f"{name} {' '.join(options)}"


def test_a_command_with_a_misspelt_option_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("```\nmultipruner prune search.targt=0.2 \\\n    resume=true  # why\n```\n")
    [(name, options)] = commands(Page(path))
    assert (name, options) == ("prune", ["search.targt=0.2", "resume=true"])
    register()
    assert "no such option" in override_problems(name, options)[0]
