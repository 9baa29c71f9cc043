"""What keeps the project in order around its code: pins, workflow, hooks, citation, changelog."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml
from hypothesis import settings
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [
    Requirement(text) for text in (*PROJECT["dependencies"], *EXTRAS["dev"], *EXTRAS["docs"])
]
OF_USERS = [
    Requirement(text) for name in sorted(EXTRAS.keys() - {"dev", "docs"}) for text in EXTRAS[name]
]


def pins(text: str) -> dict[str, str]:
    lines = [line.partition(";")[0].strip() for line in text.splitlines()]
    return {
        canonicalize_name(name): version for name, version in (line.split("==") for line in lines)
    }


@pytest.fixture(scope="module")
def lowest() -> dict[str, str]:
    command = [sys.executable, ".ci/lowest_versions.py"]
    return pins(
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )


@pytest.mark.parametrize("requirement", [*REQUIREMENTS, *OF_USERS], ids=lambda each: each.name)
def test_the_lowest_version_is_the_first_that_is_allowed(
    requirement: Requirement, lowest: dict[str, str]
) -> None:
    version = lowest[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)
    assert f">={version}" in str(requirement.specifier)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda each: each.name)
def test_the_pinned_version_is_allowed(requirement: Requirement) -> None:
    pinned = pins((ROOT / "constraints.txt").read_text())
    if canonicalize_name(requirement.name) in pinned:  # torch's build differs by machine
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])
    else:
        assert requirement.name == "torch"


def test_the_workflow_runs_the_checks_on_every_python_and_the_lowest_versions() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yaml").read_text())
    [job] = workflow["jobs"].values()
    matrix = job["strategy"]["matrix"]
    listed = re.findall(r"3\.\d+", PROJECT["requires-python"])
    first, behind = (int(version.partition(".")[2]) for version in listed)
    assert matrix["python"] == [f"3.{minor}" for minor in range(first, behind)]
    assert {"python": f"3.{first}", "versions": "lowest"} in matrix["include"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert ".ci/run" in commands
    assert any("lowest_versions.py" in command for command in commands)


def test_the_checks_are_those_of_a_developer() -> None:
    text = (ROOT / ".ci/run").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = re.findall(r"^make ([a-z-]+)$", text, re.MULTILINE)
    assert {"lint", "type", "docs", "test", "slow-test"} <= set(called) <= targets


def test_property_tests_try_the_same_examples_in_every_run() -> None:
    assert (settings().derandomize, settings().database) == (True, None)


def test_hooks_use_the_tools_of_the_environment() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = {hook["id"]: hook for repo in config["repos"] for hook in repo["hooks"]}
    assert set(hooks) == {"ruff-check", "ruff-format", "mypy", "codespell"}
    assert all(hook["entry"].startswith(".venv/bin/") for hook in hooks.values())
    developer = {canonicalize_name(Requirement(text).name) for text in EXTRAS["dev"]}
    assert {hook["entry"].split()[0].rpartition("/")[2] for hook in hooks.values()} <= developer


def test_version_and_licence_are_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert "2501.09949" in citation["preferred-citation"]["url"]


def test_the_changelog_has_the_headings_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[[\d.]+\] - \d{4}-\d\d-\d\d", version) for version in versions[1:])
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("name", ["bug.yaml", "feature.yaml"])
def test_issue_forms_ask_for_something(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE" / name).read_text())
    assert {"name", "description", "body"} <= set(form)
    asked = [item for item in form["body"] if item.get("validations", {}).get("required")]
    assert len(asked) >= 2
