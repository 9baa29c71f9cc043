"""Imports point one way: pruning <- workers <- pipelines <- experiments; ray, hydra and mlflow each
stay in one package.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

FORBIDDEN = {
    "pruning": {
        "ray",
        "hydra",
        "omegaconf",
        "mlflow",
        "workers",
        "pipelines",
        "experiments",
        "tests",
    },
    "workers": {"hydra", "omegaconf", "mlflow", "pipelines", "experiments", "tests"},
    "pipelines": {"ray", "experiments", "tests"},
    "experiments": {"ray", "tests"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_layers(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {
        str(path.relative_to(ROOT)): sorted(found)
        for path in files
        if (found := imported(path) & FORBIDDEN[package])
    }
    assert wrong == {}


def test_the_check_sees_imports(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "def f():\n    from ray.util import thing\n    import mlflow.entities as e\n"
    )
    assert imported(tmp_path / "bad.py") == {"ray", "mlflow"}
