"""The mutation run sees what it should: of a module by hand, of one test that holds half of it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.mutation.__main__ import stale_reasons, unlisted
from tests.mutation.mutants import mutants, mutated

SOURCE = '''"""Docstring."""

from x import y

LIMIT: int = 3


def f(a: int, *, b: bool = False) -> int:
    """Another."""
    assert a >= 0, "never"
    if a < LIMIT and not b:
        raise ValueError(f"{a + 1} is small")
    y.call(a, key=b)
    return a + 2 if b else a
'''


def test_every_kind_of_change_and_nothing_else() -> None:
    found = {mutant.name: mutant for mutant in mutants("m.py", SOURCE)}
    assert set(found) == {
        "module: constant: LIMIT: int = 3 -> LIMIT: int = 4",
        "f: constant: a: int, *, b: bool=False -> a: int, *, b: bool=True",
        "f: boolean: a < LIMIT and (not b) -> a < LIMIT or not b",
        "f: comparison: a < LIMIT -> a <= LIMIT",
        "f: comparison: a < LIMIT -> a >= LIMIT",
        "f: boolean: not b -> not not b",
        "f: statement: raise ValueError(f'{a + 1} is small') -> dropped",
        "f: statement: y.call(a, key=b) -> dropped",
        "f: keyword: y.call(a, key=b) -> y.call(a)",
        "f: boolean: b -> not b",
        "f: arithmetic: a + 2 -> a - 2",
        "f: constant: a + 2 -> a + 3",
    }
    for mutant in found.values():
        changed = ast.unparse(mutated(SOURCE, mutant.index))
        assert changed != ast.unparse(ast.parse(SOURCE)), mutant.name
        compile(changed, "m.py", "exec")
    dropped = found["f: statement: y.call(a, key=b) -> dropped"]
    assert "y.call" not in ast.unparse(mutated(SOURCE, dropped.index))
    assert dropped.line == 13


def test_equal_changes_of_one_function_are_numbered() -> None:
    source = "def f(a):\n    g(a + 1)\n    h(a + 1)\n"
    names = [mutant.name for mutant in mutants("m.py", source)]
    assert "f: arithmetic: a + 1 -> a - 1" in names
    assert "f: arithmetic: a + 1 -> a - 1 #2" in names
    assert len(set(names)) == len(names)


def test_words_and_what_is_so_anyway_are_no_mutants() -> None:
    call = "zip(open(a, encoding='utf-8'), Column(comment='b'), strict=True)"
    assert mutants("m.py", f"def f(a, b):\n    return {call}\n") == []
    assert mutants("m.py", "if TYPE_CHECKING:\n    from a import b\n") == []


PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
from pathlib import Path
from tests.mutation import __main__ as command, runner

runner.LIBRARIES, runner.SLOWER = (), 2
command.ROOT = command.HERE = Path({folder!r})
sys.exit(command.main())
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A package whose tests hold `doubled` and not `tripled`; one mutant never ends, another ends
    the process.
    """
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/__init__.py").write_text("")
    (tmp_path / "toy/sums.py").write_text(
        "import os\n\n\n"
        "def doubled(a):\n    return a * 2\n\n\n"
        "def tripled(a):\n    return a * 3\n\n\n"
        "def waits(a):\n    while a > 5:\n        a -= 1\n    return a\n\n\n"
        "def dies(a):\n    if a > 5:\n        os.abort()\n"
    )
    (tmp_path / "test_sums.py").write_text(
        "from toy.sums import dies, doubled, tripled, waits\n\n\n"
        "def test_it():\n    assert doubled(4) == 8 and tripled(1) > 2 and waits(9) == 5\n"
        "    dies(3)\n"
    )
    (tmp_path / "modules.yaml").write_text("toy/sums.py: [test_sums.py]\n")
    (tmp_path / "survivors.yaml").write_text("{}\n")
    return tmp_path


def mutation_run(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(folder=str(project)), *words],
        cwd=project,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_survivors_are_found_and_explained(project: Path) -> None:
    ran = mutation_run(project, "--name", "tripled")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "1 of 2 killed: 50.0%" in ran.stdout
    assert "toy/sums.py:9\n    tripled: constant: a * 3 -> a * 4" in ran.stdout
    assert "killed    toy/sums.py:9 tripled: arithmetic: a * 3 -> a / 3" in ran.stdout
    assert "test_sums.py::test_it" in ran.stdout
    reasons = {"toy/sums.py": {"tripled: constant: a * 3 -> a * 4": "the toy's gap"}}
    (project / "survivors.yaml").write_text(yaml.safe_dump(reasons))
    ran = mutation_run(project, "--name", "tripled")
    assert ran.returncode == 0, ran.stdout
    assert "1 of 2 killed: 50.0%" in ran.stdout


def test_a_mutant_that_hangs_is_killed(project: Path) -> None:
    ran = mutation_run(project, "--name", "a -= 1 -> dropped")
    assert "hung" in ran.stdout, ran.stdout + ran.stderr
    assert "1 of 1 killed: 100.0%, 1 of them by the time limit" in ran.stdout
    assert "     0     1    1          0  toy/sums.py" in ran.stdout
    assert ran.returncode == 0


def test_a_mutant_that_ends_the_process_is_not_killed_by_a_test(project: Path) -> None:
    """Nobody knows whether a test would have seen it."""
    ran = mutation_run(project, "--name", "a > 5 -> a <= 5", "--seed", "1")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "crashed   toy/sums.py:19 dies: comparison: a > 5 -> a <= 5" in ran.stdout
    assert "1 of 2 killed: 50.0%" in ran.stdout, "that of `waits` is"
    assert "crashed, and not in survivors.yaml:\n  toy/sums.py:19" in ran.stdout
    reasons = {"toy/sums.py": {"dies: comparison: a > 5 -> a <= 5": "the toy's own end"}}
    (project / "survivors.yaml").write_text(yaml.safe_dump(reasons))
    ran = mutation_run(project, "--name", "dies: comparison: a > 5 -> a <= 5")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 of 1 killed: 0.0%" in ran.stdout


def test_a_failure_of_pytest_itself_kills_no_mutant(project: Path) -> None:
    (project / "conftest.py").write_text(
        "from toy.sums import doubled\n\n\n"
        "def pytest_runtest_logreport():\n    assert doubled(4) == 8\n"
    )
    ran = mutation_run(project, "--name", "doubled: arithmetic")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "0 of 1 killed" in ran.stdout
    assert "crashed, and not in survivors.yaml:" in ran.stdout


def test_what_there_was_no_time_for_is_counted(project: Path) -> None:
    ran = mutation_run(project, "--name", "doubled", "--minutes", "0")
    assert ran.returncode == 1
    assert ran.stdout.endswith("\nnot run: 2 for time, 0 whose tests fail without a mutant\n"), (
        ran.stdout
    )


@pytest.mark.slow
def test_the_seed_draws_the_order_of_all(project: Path) -> None:
    """Or a run whose time is over has seen the first modules alone."""

    def order(*words: str) -> list[str]:
        ran = mutation_run(project, "--name", "constant", *words)
        return re.findall(r" s  (?:killed|survived) +(\S+:\d+ \S+)", ran.stdout)

    first, again, other = (order("--seed", seed) for seed in ("1", "1", "2"))
    assert first == again
    assert len(first) == 5
    assert sorted(first) == sorted(other)
    assert first != other


def test_reasons_without_a_mutant_are_named(project: Path) -> None:
    (project / "survivors.yaml").write_text("toy/sums.py: {gone -> away: long ago}\n")
    ran = mutation_run(project, "--name", "doubled")
    assert ran.returncode == 1
    assert "2 of 2 killed" in ran.stdout
    assert "no such mutant:\n  toy/sums.py: gone -> away" in ran.stdout


def test_tests_that_fail_anyway_count_no_mutant_as_killed(project: Path) -> None:
    (project / "test_sums.py").write_text("def test_it():\n    assert False\n")
    ran = mutation_run(project)
    assert ran.returncode == 1
    assert "left out, since these fail without a mutant: test_sums.py" in ran.stdout
    assert "0 of 0 killed" in ran.stdout
    [number] = re.findall(r"\nnot run: 0 for time, (\d+) whose tests fail", ran.stdout)
    assert ran.stdout.startswith(f"{number} of {number} mutants")


def test_modules_and_their_tests_are_there() -> None:
    listed = yaml.safe_load((ROOT / "tests/mutation/modules.yaml").read_text())
    files = {test.partition("::")[0] for tests in listed.values() for test in tests}
    assert [name for name in [*files, *listed] if not (ROOT / name).is_file()] == []


def test_every_module_is_listed_and_every_reason_is_of_a_mutant() -> None:
    """Or `make mutants` fails for what has nothing to do with what it ran."""
    listed, explained = (
        yaml.safe_load((ROOT / f"tests/mutation/{name}.yaml").read_text())
        for name in ("modules", "survivors")
    )
    assert unlisted(listed) == []
    assert stale_reasons(explained) == []


def test_modules_without_tests_are_named(project: Path) -> None:
    (project / "pruning").mkdir()
    (project / "pruning/new.py").write_text("LIMIT = 3\n")
    (project / "pruning/words.py").write_text('"""Nothing to change."""\n')
    ran = mutation_run(project, "--name", "doubled")
    assert ran.returncode == 1
    assert "not in modules.yaml:\n  pruning/new.py\n" in ran.stdout + "\n"
