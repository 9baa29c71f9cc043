"""What the program that judges runs prints, against what the runs measured themselves."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from experiments.heldout.__main__ import main
from tests.pipelines.command import Outcome, searched
from tests.tiny_search import tiny_search


@pytest.fixture
def allocated(tmp_path: Path, checkpoint_folder: Path, token_file: Path) -> Outcome:
    text = shutil.copy(token_file, tmp_path / "text.safetensors")
    words = tiny_search(
        checkpoint_folder, text, "search.target_ratio=0.12", "search.distribution=[0,1,1]",
        "search.mlp_group_channels=8",
    )  # fmt: skip
    return searched(tmp_path, "search=allocation", *words)


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["heldout", *map(str, words)])
    return main()


def test_it_finds_the_heldout_perplexity_of_the_run(
    allocated: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of_run = allocated.summary["perplexity"]["heldout"]
    assert run(monkeypatch, allocated.folder, "--windows", 4) == 0
    said = capsys.readouterr().out
    found = {
        name.strip(): float(perplexity)
        for name, perplexity in re.findall(r"^  (.+?) ratio .* ([\d.]+)$", said, re.MULTILINE)
    }
    assert list(found) == ["dense", "uniform, not compensated", "uniform", "allocation"]
    assert found["dense"] == round(of_run["dense"], 2)
    assert found["allocation"] == round(of_run["pruned"], 2)
    assert found["uniform, not compensated"] != found["uniform"]
    assert "4 windows of held-out text, each of 32 tokens, float32" in said
    assert re.search(
        r"allocation less uniform, held-out text: [+-]0\.\d{4} \+- 0\.\d{4} nats", said
    )


def test_text_that_the_run_may_have_seen_is_refused(
    allocated: Outcome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "text.safetensors"
    tokens = load_file(path)["input_ids"]
    save_file({"input_ids": tokens[::-1].copy()}, path)
    assert run(monkeypatch, allocated.folder) == 2
    assert "its text has changed since (the block set had fingerprint" in capsys.readouterr().err


def test_one_window_has_no_standard_error(
    allocated: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, allocated.folder, "--windows", 1)
    assert error.value.code == 2
    assert "--windows: 1; a standard error takes 2" in capsys.readouterr().err
