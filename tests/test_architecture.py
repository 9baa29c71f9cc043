"""The structure of the code: imports point one way, files and functions are short, entries are
quick. What holds is written in docs/design/architecture.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.source_tree import (
    circle,
    entries_imported,
    imports_of,
    imports_upwards,
    inits_with_code,
    long_files,
    long_functions,
    tracked,
    wide_lines,
    written,
)

PACKAGES = ("pruning", "workers", "pipelines")
INSTALLED = (*PACKAGES, "multipruner")
FORBIDDEN = {
    "pruning": {"ray", "hydra", "omegaconf", "mlflow", "workers", "pipelines", "experiments"},
    "workers": {"hydra", "omegaconf", "mlflow", "pipelines", "experiments"},
    "pipelines": {"ray", "experiments"},
    "multipruner": {"ray", "hydra", "omegaconf", "mlflow", "workers", "experiments"},
    "experiments": {"ray"},
}
"""By package; tests are imported by none."""

FLOORS = {
    "pruning": [
        {"errors", "canonical_json", "disk"},
        {"shape"},
        {"models"},
        {"calibration"},
        {"importance", "scoring", "costs"},
        {"compensation"},
        {"search", "recovery"},
        {"export"},
    ],
    "workers": [{"prefix"}, {"tasks", "cluster"}, {"evaluators"}, {"pool"}, {"training"}],
    "pipelines": [
        {"errors"},
        {"config"},
        {"runs", "store", "tracking", "cli", "evaluators", "engines"},
        {"evaluate", "export", "jobs", "latency", "plan", "solve", "status"},
        {"recover"},
        {"logs", "prune", "report", "stop", "submit"},
        {"sweep", "reproduce"},
        {"__main__"},
    ],
}
"""A room imports only rooms on lower floors."""


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_only_what_is_below_them(package: str) -> None:
    wrong = FORBIDDEN[package] | {"tests"} | ({"multipruner"} - {package})
    found = [each for each in imports_of(ROOT, package) if each.target.split(".")[0] in wrong]
    assert list(map(str, found)) == []


def test_the_python_package_imports_little_of_pruning() -> None:
    """`multipruner` calls the commands; of the domain it knows what they take and give."""
    targets = {each.target for each in imports_of(ROOT, "multipruner")}
    domain = {target for target in targets if target.startswith("pruning.")}
    modules = {".".join(target.split(".")[:2]) for target in domain}
    assert modules == {"pruning.errors", "pruning.shape"}


def test_imports_inside_of_functions_are_seen(tmp_path: Path) -> None:
    source = "def f():\n    from ray.util import thing\n    import mlflow.entities as e\n"
    written(tmp_path, {"pruning/bad.py": source})
    found = list(map(str, imports_of(tmp_path, "pruning")))
    assert found == [
        "pruning/bad.py:2 imports ray.util",
        "pruning/bad.py:2 imports ray.util.thing",
        "pruning/bad.py:3 imports mlflow.entities",
    ]
    written(tmp_path, {"pruning/bad.py": "from . import thing\n"})
    with pytest.raises(AssertionError, match=r"bad\.py:1 is a relative import"):
        list(imports_of(tmp_path, "pruning"))


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_only_rooms_below(package: str) -> None:
    assert imports_upwards(ROOT, package, FLOORS[package]) == []


def test_an_import_upwards_is_seen(tmp_path: Path) -> None:
    floors = FLOORS["pruning"]
    written(
        tmp_path,
        {
            "pruning/__init__.py": '"""Docstring."""\n',
            "pruning/search/greedy.py": "from pruning.export.folder import Export\n",
            "pruning/scoring/nll.py": "def f():\n    import pruning.costs.measured\n",
            "pruning/export/folder.py": "from pruning.search.greedy import GreedySearch\n",
            "pruning/attic/old.py": "from pruning import shape\n",
        },
    )
    assert imports_upwards(tmp_path, "pruning", floors) == [
        "attic: on no floor (pruning/attic/old.py:1 imports pruning.shape)",
        "pruning/scoring/nll.py:2 imports pruning.costs.measured",
        "pruning/search/greedy.py:1 imports pruning.export.folder",
        "pruning/search/greedy.py:1 imports pruning.export.folder.Export",
    ]


def test_no_circle() -> None:
    assert circle(ROOT, INSTALLED) == []


def test_a_circle_is_seen(tmp_path: Path) -> None:
    written(
        tmp_path,
        {
            "workers/__init__.py": '"""Docstring."""\n',
            "workers/a.py": "from workers.b import b\n",
            "workers/b.py": "def b():\n    from workers.c import c\n",
            "workers/c.py": "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    import workers.a\n",
        },
    )
    assert set(circle(tmp_path, ["workers"])) == {"workers.a", "workers.b", "workers.c"}
    (tmp_path / "workers/c.py").write_text("import workers\n")
    assert circle(tmp_path, ["workers"]) == []


def test_entries_are_for_python_to_run(tmp_path: Path) -> None:
    assert entries_imported(ROOT, [*INSTALLED, "experiments"]) == []
    written(
        tmp_path, {"pipelines/sweep/command.py": "from pipelines.prune.__main__ import prune_job\n"}
    )
    assert len(entries_imported(tmp_path, ["pipelines"])) == 2


def test_an_init_is_a_docstring_and_nothing_else(tmp_path: Path) -> None:
    assert inits_with_code(ROOT, PACKAGES) == []
    written(
        tmp_path,
        {
            "pruning/__init__.py": '"""Docstring."""\n',
            "pruning/a/__init__.py": '"""Docstring."""\n\nNAMES = ("a", "b")\n',
            "pruning/b/__init__.py": "from pruning.b.c import d\n",
            "pruning/c/__init__.py": "",
        },
    )
    assert inits_with_code(tmp_path, ["pruning"]) == [
        f"pruning/{name}/__init__.py" for name in "abc"
    ]


@pytest.mark.parametrize("package", INSTALLED)
def test_type_checkers_of_others_read_our_types(package: str) -> None:
    """PEP 561: the mark is there, and goes with the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert (ROOT / package / "py.typed").is_file()
    assert "py.typed" in project["tool"]["setuptools"]["package-data"][package]


def test_files_functions_and_lines_are_short() -> None:
    files = tracked(ROOT)
    assert len([path for path in files if path.suffix == ".py"]) > 200
    assert long_files(ROOT, files, most=400) == {}
    assert long_functions(ROOT, files, most=60) == {}
    assert wide_lines(ROOT, files, most=100) == {}


def test_what_is_long_is_seen(tmp_path: Path) -> None:
    function = "def f():\n" + "    pass\n" * 60
    written(
        tmp_path,
        {
            "a.py": "x = 1\n" * 401,
            "b.py": f"class A:\n    {'    '.join(function.splitlines(keepends=True))}\n",
            "Makefile": f"all:\n\t{'x' * 100}\n",
            "c.md": "x" * 101,
        },
    )
    files = [Path(name) for name in ("a.py", "b.py", "Makefile", "c.md")]
    assert long_files(tmp_path, files, most=400) == {"a.py": 401}
    assert long_functions(tmp_path, files, most=60) == {"b.py:f": 61}
    assert wide_lines(tmp_path, files, most=100) == {"Makefile": [2]}


RUN = """
import json, runpy, sys
try:
    runpy.run_module("pipelines", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    assert not stop.code, stop.code
print(json.dumps([name for name in {modules!r} if name in sys.modules]))
"""
QUICK = """
import sys
import multipruner
print(sorted(set(sys.modules) & set({modules!r})))
"""


def test_the_python_package_is_imported_at_once() -> None:
    modules = [*WITH_TORCH, "hydra", "omegaconf", "numpy", "rich", "pipelines", "workers"]
    command = [sys.executable, "-c", QUICK.format(modules=modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SLOW = ["ray", "mlflow", "sqlalchemy", "matplotlib", "plotly", "datasets", "lm_eval", "pandas"]
WITH_TORCH = [*SLOW, "torch", "transformers", "huggingface_hub"]


@pytest.mark.parametrize(
    ("words", "unwanted"),
    [
        (["--help"], WITH_TORCH),
        (["export", "--help"], WITH_TORCH),
        (["status", "FOLDER"], WITH_TORCH),
        (["plan", "model.path=FOLDER", "output_dir=FOLDER/plan", "measure_rate=false"], SLOW),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_what_must_be_quick_imports_little(
    tmp_path: Path, words: list[str], unwanted: list[str]
) -> None:
    """In a process of its own, as a user starts it."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64}
    status = {"updated": 0, "started": 0, "state": "finished", "host": "nowhere", "pid": 1}
    written(
        tmp_path,
        {
            "config.json": json.dumps({"model_type": "llama", **sizes}),
            "status.json": json.dumps(status),
        },
    )
    given = [word.replace("FOLDER", str(tmp_path)) for word in words]
    given += ["search.distribution=[1,0,0]"] if words[0] == "plan" else []
    command = [sys.executable, "-c", RUN.format(modules=unwanted), *given]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"MULTIPRUNER_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
