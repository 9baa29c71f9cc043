"""Shell scripts: they parse, and passwords come from files."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.docker.files import DOCKER, SCRIPTS


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(path: Path) -> None:
    subprocess.run(
        [
            path.read_text().splitlines()[0].removeprefix("#!").split("/")[-1].removeprefix("env "),
            "-n",
            str(path),
        ],
        check=True,
    )
    assert os.access(path, os.X_OK)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    subprocess.run(["shellcheck", *map(str, SCRIPTS)], check=True)


def with_secrets(environment: Mapping[str, str], command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(DOCKER / "with-secrets.sh"), "sh", "-c", command],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
    )


def test_with_secrets_reads_files(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("a b$c'd\n")
    answer = with_secrets(
        {"PGPASSWORD_FILE": str(tmp_path / "password")},
        'printf %s "$PGPASSWORD|${PGPASSWORD_FILE-gone}"; exit 7',
    )
    assert answer.stdout == "a b$c'd|gone"
    assert answer.returncode == 7
    assert with_secrets({"PGPASSWORD": "given"}, "echo $PGPASSWORD").stdout == "given\n"


def test_with_secrets_stops_without_a_secret(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    answer = with_secrets({"PGPASSWORD_FILE": str(tmp_path / "empty")}, "echo started")
    assert answer.returncode == 2
    assert "is empty (PGPASSWORD_FILE)" in answer.stderr
    assert (
        with_secrets({"PGPASSWORD_FILE": str(tmp_path / "nowhere")}, "echo started").returncode != 0
    )
    assert answer.stdout == ""
