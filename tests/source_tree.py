"""What the files of the repository import, and how long they are: for the tests of its structure.

Each function takes a folder, so that the tests can show it a bad example.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

Floors = Sequence[set[str]]
"""Rooms of a package, from the lowest floor to the highest."""


@dataclass(frozen=True, slots=True)
class Import:
    """One import, wherever in its file: inside of functions and of `if TYPE_CHECKING`, too.

    Args:
        file: relative to the root.
        target: the module, or a name in it.
    """

    file: Path
    line: int
    target: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"


def imports_of(root: Path, package: str) -> Iterator[Import]:
    """Of every file of a package, with `from a import b` as `a` and as `a.b`."""
    files = sorted((root / package).rglob("*.py"))
    assert files, f"no code in {root / package}"
    for path in files:
        file = path.relative_to(root)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (Import(file, node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}:{node.lineno} is a relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from (Import(file, node.lineno, name) for name in [str(node.module), *names])


def imports_upwards(root: Path, package: str, floors: Floors) -> list[str]:
    """Imports of a room that is not on a lower floor, and rooms that are on none."""
    level = {room: number for number, rooms in enumerate(floors) for room in rooms}
    found = []
    for each in imports_of(root, package):
        room, parts = _room(each.file), each.target.split(".")
        if room == "__init__" or parts[0] != package or len(parts) < 2 or parts[1] == room:
            continue
        missing = sorted({room, parts[1]} - level.keys())
        if missing:
            found.append(f"{', '.join(missing)}: on no floor ({each})")
        elif level[parts[1]] >= level[room]:
            found.append(str(each))
    return sorted(set(found))


def circle(root: Path, packages: Sequence[str]) -> list[str]:
    """Modules that import one another in a circle; empty if there are none."""
    files = [path for package in packages for path in (root / package).rglob("*.py")]
    modules = {_module(path.relative_to(root)) for path in files}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for package in packages:
        for each in imports_of(root, package):
            module = _module(each.file)
            if each.target in modules - {module}:
                graph[module].add(each.target)
    # A package's own docstring is no reason to wait for what is in it.
    graph = {name: needs - set(packages) for name, needs in graph.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def entries_imported(root: Path, packages: Sequence[str]) -> list[str]:
    """Imports of a `__main__`, which is for Python to run."""
    found = [each for package in packages for each in imports_of(root, package)]
    return [str(each) for each in found if "__main__" in each.target.split(".")]


def inits_with_code(root: Path, packages: Sequence[str]) -> list[str]:
    """`__init__.py` files that hold more than a docstring, or none."""
    found = []
    for package in packages:
        for path in sorted((root / package).rglob("__init__.py")):
            body = ast.parse(path.read_text()).body
            only = len(body) == 1 and isinstance(body[0], ast.Expr)
            if not only or ast.get_docstring(ast.parse(path.read_text())) is None:
                found.append(str(path.relative_to(root)))
    return found


def long_files(root: Path, files: Sequence[Path], *, most: int) -> dict[str, int]:
    """Lines of the Python files that have more than `most`."""
    lengths = {str(path): len((root / path).read_text().splitlines()) for path in _python(files)}
    return {name: length for name, length in lengths.items() if length > most}


def long_functions(root: Path, files: Sequence[Path], *, most: int) -> dict[str, int]:
    """Lines of the functions that have more than `most`, docstrings included."""
    lengths = {
        f"{path}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in _python(files)
        for node in ast.walk(ast.parse((root / path).read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    return {name: length for name, length in lengths.items() if length > most}


def wide_lines(root: Path, files: Sequence[Path], *, most: int) -> dict[str, list[int]]:
    """Numbers of the lines that have more than `most` columns, by file."""
    found = {
        str(path): [
            number
            for number, line in enumerate((root / path).read_text().splitlines(), start=1)
            if len(line) > most
        ]
        for path in files
        if path.suffix in {".py", ".yaml", ".yml", ".toml", ".sh", ".sbatch", ".js", ".j2"}
        or path.name in {"Makefile", "Dockerfile"}
        or path.parts[0] == ".ci"
    }
    return {name: numbers for name, numbers in found.items() if numbers}


def tracked(root: Path) -> list[Path]:
    """The files that git knows, and new ones that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in sorted(set(listed.splitlines())) if (root / name).is_file()]


def written(root: Path, files: Mapping[str, str]) -> Path:
    """A tree of files, for bad examples."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _python(files: Sequence[Path]) -> list[Path]:
    return [path for path in files if path.suffix == ".py"]


def _room(file: Path) -> str:
    return file.parts[1].removesuffix(".py")


def _module(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")
