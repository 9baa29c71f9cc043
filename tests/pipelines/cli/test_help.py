"""`multipruner`: its list of commands, its help texts, and the commands that messages name."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from pipelines.__main__ import main
from pipelines.cli.commands import COMMANDS, command_line
from pipelines.config import options
from pipelines.config.grid import as_grid
from pipelines.config.overrides import CONF, as_override
from pipelines.config.schemas import register
from tests.conftest import ROOT
from tests.pipelines.command import run_command

Say = Callable[..., tuple[int, str]]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """`multipruner WORDS` in this process: its exit status and what it prints."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["multipruner", *words])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().out
        return 0, capsys.readouterr().out

    return run


CONFIGURED = [name for name, command in COMMANDS.items() if not command.flags]
"""Commands that take options of a configuration."""


def test_the_script_is_installed_under_its_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["multipruner"].partition(":")
    assert getattr(import_module(module), function) is main


def test_commands_are_the_folders_with_an_entry() -> None:
    folders = {path.parent.name for path in (ROOT / "pipelines").glob("*/__main__.py")}
    assert set(COMMANDS) == folders
    assert {*CONFIGURED} == set(options.COMMANDS)


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)], ids=str)
def test_the_list_of_commands(say: Say, words: tuple[str, ...]) -> None:
    status, text = say(*words)
    assert status == 0
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for command in COMMANDS.values():
        assert f"{command.name} {command.summary}" in lines


def test_the_version(say: Say) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert say("--version") == (0, f"multipruner {project['version']}\n")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("prnue", "did you mean prune?"),
        ("exprot", "did you mean export?"),
        ("train", f"one of {', '.join(COMMANDS)}"),
    ],
)
def test_an_unknown_command(say: Say, word: str, hint: str) -> None:
    assert say(word, "--help") == (2, f"error: {word}: no such command; {hint}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command(say: Say, name: str) -> None:
    status, text = say(name, "search.target_ratio=0.1", "--help")
    assert status == 0
    assert text.startswith(f"Usage: multipruner {name} ")
    examples = [line for line in text.splitlines() if line.startswith(f"  multipruner {name}")]
    assert len(examples) == 3
    assert COMMANDS[name].description.split(".")[0] in " ".join(text.split())
    assert "\x1b" not in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line for line in lines if line != line.rstrip()] == []
    names = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    wanted = [option.name for option in options.options_of(name)] if name in CONFIGURED else []
    assert [name for name in wanted if names.count(name) != 1] == []
    assert ("--hydra-help" in names) == (name in CONFIGURED)


def test_an_option_has_its_meaning_its_type_and_its_default(say: Say) -> None:
    text = " ".join(say("prune", "--help")[1].split())
    assert "search.importance Order of channels: activation, l1" in text
    assert "[one of activation, l1, none; default activation]" in text
    assert "search=blockpruner BlockPruner (arXiv 2406.10594)" in text
    assert "then attention heads. [default]" in text
    assert "expected.source" not in text
    text = " ".join(say("reproduce", "--help")[1].split())
    assert "expected.source where the figures come from. [text; required]" in text


def test_the_flags_of_status_are_those_that_it_takes(say: Say) -> None:
    text = say("status", "--help")[1]
    for flag, meaning in COMMANDS["status"].flags:
        assert f"{flag}  " in text
        assert meaning in text
        assert run_command("status", flag, "/nowhere").status == 2
    status, said = say("status", "/nowhere")
    assert (status, said.startswith("error: output_dir: no status.json in /nowhere;")) == (2, True)


@pytest.mark.parametrize("name", CONFIGURED)
def test_the_examples_compose(name: str) -> None:
    register()
    for words, _ in COMMANDS[name].examples:
        given = (
            as_grid(shlex.split(words))
            if name in ("plan", "solve", "sweep")
            else shlex.split(words)
        )
        with initialize_config_dir(str(CONF), version_base=None):
            config = compose(name, overrides=[word for word in given if "=" in word])
        assert config is not None
        assert [word for word in given if "=" not in word] == (
            given[: len(given) - len([word for word in given if "=" in word])]
        )


@pytest.mark.parametrize("name", ["export", "status"])
def test_both_ways_to_call_a_command_say_the_same(say: Say, name: str) -> None:
    assert run_command(name, "--help").output == say(name, "--help")[1]


def test_the_words_of_a_command_are_those_of_its_module(say: Say) -> None:
    words = ["run=/nowhere", "format=tranformers"]
    found = run_command("export", *words)
    assert found.status == 2
    assert "format: 'tranformers'; one of transformers, decilm, gguf" in found.output
    assert say("export", *words) == (found.status, found.output)


@pytest.mark.parametrize(
    "folder",
    [
        "/tmp/run",
        "/tmp/a_b-c.d:e@f%20+1/~x",
        "null",
        "outputs/llama-2_7b (first)",
        "/tmp/it's here, or there",
        "/tmp/$HOME and ${model.path}",
        r"C:\runs\new",
        "/tmp/a=b;c&d|e>f",
        "/tmp/[a]{b}",
        "",
    ],
)
def test_commands_in_messages_can_be_pasted(folder: str) -> None:
    """Into a shell, whose words Hydra then takes for the same text."""
    line = command_line("prune", "resume=true", as_override("output_dir", folder))
    program, command, *words = shlex.split(line)
    echoed = subprocess.run(
        f"printf '%s\\n' {line}", shell=True, capture_output=True, text=True, check=True
    )
    assert echoed.stdout.splitlines() == [program, command, *words]
    assert (program, command) == ("multipruner", "prune")
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("prune", overrides=words)
    assert config.output_dir == folder
    assert config.resume


def test_help_needs_no_heavy_import(tmp_path: Path) -> None:
    program = """
import sys
sys.argv = ["multipruner", "prune", "--help"]
from pipelines.__main__ import main
main()
heavy = ["torch", "transformers", "ray", "mlflow", "sqlalchemy"]
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
