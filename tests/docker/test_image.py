"""The images: what is in them, and as whom they run."""

from __future__ import annotations

import re

from tests.conftest import ROOT
from tests.docker.files import DOCKER, pins


def test_the_image_is_pinned_and_not_root() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    lines = [
        line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")
    ]
    base = next(line for line in lines if line.startswith("ARG BASE="))
    assert re.search(r":\d+\.\d+-\w+", base)
    for stage in stages(lines):
        users = [line for line in stage if line.startswith("USER ")]
        assert re.fullmatch(r"USER [1-9]\d*:[1-9]\d*", users[-1])
    for command in re.findall(r"pip install ([^&]*)", "\n".join(lines)):
        assert "--constraint constraints.txt" in command or re.search(
            r"--no-deps \S+==", command
        ), command
    assert not re.search(r"^(ENV|ARG)\b.*(PASSWORD|SECRET|TOKEN)", text, re.MULTILINE)


def stages(lines: list[str]) -> list[list[str]]:
    """Of the images that can be run: the lines of their last stage."""
    starts = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    found = [lines[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    built = [stage for stage in found if any(line.startswith("CMD ") for line in stage)]
    assert len(built) == 2
    return built


def test_what_the_image_of_mlflow_adds_is_pinned_once() -> None:
    path = DOCKER / "requirements-mlflow.txt"
    ours, projects = pins(path), pins(ROOT / "constraints.txt")
    assert not set(ours) & set(projects)
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    loose = [re.sub(r"\[.*", "", line) for line in lines if line and "==" not in line]
    assert loose == ["mlflow", "psycopg"]
    assert set(loose) <= set(projects)


def test_the_image_of_mlflow_has_its_server_alone() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    mlflow = text[text.index("AS mlflow") : text.index("FROM base\n")]
    assert re.findall(r"--requirement (\S+)", mlflow) == ["requirements-mlflow.txt"]
    assert "torch" not in mlflow
    assert "COPY conf" not in mlflow


def test_the_build_sees_what_it_copies_and_no_more() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    copied = [
        word
        for line in (DOCKER / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY")
        for word in line.split()[1:-1]
        if "--" not in word
    ]
    assert set(copied) == allowed
    assert all((ROOT / name).exists() for name in allowed)
    assert ".env" in (DOCKER / ".gitignore").read_text().split()
