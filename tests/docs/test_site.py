"""The site that `make docs` builds."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs: make setup"
)


def build(site: Path) -> subprocess.CompletedProcess[str]:
    """As `make docs`. With --quiet, mkdocs would not count warnings."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]
    return subprocess.run(
        [*command, str(site)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_site_builds_without_a_warning_and_loads_nothing_from_the_network(
    tmp_path: Path,
) -> None:
    done = build(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WARNING -" not in done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 35
    loaded = r"<(?:script|img|iframe)[^>]+src=\"(http[^\"]+)|<link[^>]+href=\"(http[^\"]+)"
    assert [
        (page.name, found) for page in pages for found in re.findall(loaded, page.read_text())
    ] == []
