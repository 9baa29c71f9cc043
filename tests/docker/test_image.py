"""The image: what is in it, and as whom it runs."""

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
    users = [line for line in lines if line.startswith("USER ")]
    assert re.fullmatch(r"USER [1-9]\d*:[1-9]\d*", users[-1])
    for command in re.findall(r"pip install ([^&]*)", "\n".join(lines)):
        assert "--constraint constraints.txt" in command or re.search(
            r"--no-deps \S+==", command
        ), command
    assert not re.search(r"^(ENV|ARG)\b.*(PASSWORD|SECRET|TOKEN)", text, re.MULTILINE)


def test_what_the_image_adds_is_pinned_once() -> None:
    ours, projects = pins(DOCKER / "requirements.txt"), pins(ROOT / "constraints.txt")
    assert not set(ours) & set(projects)
    lines = [
        line.split("#")[0].strip()
        for line in (DOCKER / "requirements.txt").read_text().splitlines()
    ]
    loose = [line for line in lines if line and "==" not in line]
    assert [re.sub(r"\[.*", "", line) for line in loose] == ["mlflow", "ray"]
    assert {"mlflow", "ray", "psycopg"} <= set(projects)


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
