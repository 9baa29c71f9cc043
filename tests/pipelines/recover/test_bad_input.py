"""Input that a recovery refuses before any weight is loaded, each with one message."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from safetensors.numpy import save_file

from pipelines.config.schemas import register
from pipelines.recover import job
from pruning.costs.active_weights import has_experts
from pruning.models.checkpoint import Checkpoint
from tests.conftest import ROOT, tiny_config, tiny_model, tokens
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli
from tests.pipelines.recover.conftest import QUICK, WHOLE, Recover
from workers.cluster.machine import LocalMachine


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Checkpoint, "load", load)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("recovery.loss=mse",), "recovery.loss: 'mse'; one of kl, nll"),
        (("recovery.steps=0",), "recovery.steps: 0; at least 1"),
        (("recovery.learning_rate=0",), "recovery.learning_rate: 0; above 0"),
        (("recovery.learning_rate=inf",), "recovery.learning_rate: inf; above 0"),
        (("recovery.dropout=1",), "recovery.dropout: 1; at least 0 and below 1"),
        (("recovery.warmup_steps=12",), "recovery.warmup_steps: 12, of 12 recovery.steps"),
        (
            ("recovery.micro_batch_size=5",),
            "recovery.micro_batch_size: 5, above the 4 of recovery.batch_size",
        ),
        (("recovery.num_sequences=3",), "recovery.num_sequences: 3, below the 4 of "),
        (("recovery.num_heldout_sequences=0",), "recovery.num_heldout_sequences: 0; at least 1"),
        (
            ("recovery.rank=17",),
            "recovery.rank: 17, above the narrowest matrix that is left (attention of layer 3: 8); "
            "give at most 8",
        ),
        (("recovery.alpha=null",), "recovery.alpha: missing; with a recovery.rank give a number"),
        (
            ("recovery.rank=null", "recovery.dropout=0"),
            "recovery.alpha: 32, of adapters, and recovery.rank=null trains whole matrices; give "
            "recovery=full, which has none of it, or a recovery.rank",
        ),
        ((*WHOLE, "recovery.dropout=0.1"), "recovery.dropout: 0.1, of adapters, and "),
        (("recovery.num_sequences=25",), "calibration: 25 sequences asked for, "),
        (
            ("recovery.num_sequences=24",),
            "calibration: tokens has no text to hold out for a sequence of 32 tokens",
        ),
        (
            ("calibration.num_block_samples=3",),
            "calibration.num_block_samples: has no effect on recover; give recovery.num_sequences",
        ),
        (("calibration=text",), "calibration.path: missing; calibration=text needs a file"),
        (("cluster.task_timeout_s=9",), "cluster.task_timeout_s: has no effect on recover"),
        (
            ("cluster.stall_timeout_s=9",),
            "cluster.stall_timeout_s: has no effect with cluster=inline, where nothing is waited",
        ),
        (("shape=x.json",), "run, shape: both are given; give run=OUTPUT_DIR of a search, or "),
        (("model.dtype=bfloat16",), "model.dtype: has no effect with run=, which knows its model"),
        (("importance=l1",), "importance: has no effect with run=, which knows its model and"),
        (("run=/nowhere",), "run: /nowhere has no run.json"),
        (
            ("cluster=local", "cluster.num_evaluators=3"),
            "cluster.num_evaluators: 3, above the number of parts of an update, each of which one "
            "process takes: 2 (recovery.batch_size=4, recovery.micro_batch_size=3); give at most "
            "2, or recovery.micro_batch_size=1",
        ),
        (("cluster=local", "cluster.num_gpus_per_evaluator=2"), "cluster.num_gpus_per_evaluator: "),
        (("cluster.num_cpus_per_evaluator=1000",), "cluster.num_cpus_per_evaluator: 1000"),
        (("recovery.stesp=5",), "recovery.stesp: no such option; did you mean recovery.steps?"),
    ],
)
def test_bad_options(recover: Recover, words: tuple[str, ...], message: str) -> None:
    outcome = recover(*words)
    assert outcome.status == 2, outcome.output
    [error] = outcome.errors
    assert error.startswith(f"error: {message}")
    assert not outcome.folder.exists(), "something was written"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model.path=MODEL",), "calibration: missing; with shape= say what text to train on"),
        (("calibration=tokens",), "model.path: empty; give a folder, a .gguf file or a hub id"),
        (("model.path=MODEL", "calibration=tokens", "output_dir="), "output_dir: missing; with "),
        (
            ("model.path=MODEL", "calibration=tokens", "importance=activation"),
            "importance: 'activation'; with shape= one of l1, none",
        ),
        (
            ("model.path=OTHER", "calibration=tokens", "recovery.rank=99"),
            "model.path: OTHER (fingerprint ",
        ),
        (("model.path=MODEL", "calibration=tokens", "shape=FAR"), "importance: FAR narrows blocks"),
        (
            ("model.path=MODEL", "calibration=tokens", "recovery.rank=99"),
            "recovery.rank: 99, above the narrowest matrix that is left",
        ),
    ],
)
def test_a_shape_file_that_cannot_be_recovered(
    cli: Cli,
    ended: Outcome,
    checkpoint_folder: Path,
    token_file: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    message: str,
) -> None:
    tiny_model(tiny_config("llama", head_dim=8)).save_pretrained(tmp_path / "other")
    shutil.copy(ended.folder / "shape.json", tmp_path / "far.json")
    names = {"MODEL": checkpoint_folder, "OTHER": tmp_path / "other", "FAR": tmp_path / "far.json"}

    def named(text: str) -> str:
        for name, path in names.items():
            text = text.replace(name, str(path))
        return text

    given = [f"shape={ended.folder}/shape.json", *QUICK, f"output_dir={tmp_path}/recovered"]
    given += [f"calibration.path={token_file}"] if "calibration=tokens" in words else []
    outcome = cli("recover", *given, *map(named, words))
    assert outcome.status == 2, outcome.output
    [error] = outcome.errors
    assert error.startswith(f"error: {named(message)}")
    assert not (tmp_path / "recovered").exists(), "something was written"


def test_a_mixture_of_experts_is_not_trained_whole(
    recover: Recover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its experts are one tensor, which is no linear layer."""
    assert has_experts(tiny_config("mixtral"))
    assert not has_experts(tiny_config("llama"))
    monkeypatch.setattr(job, "has_experts", lambda _: True)
    [error] = recover(*WHOLE).errors
    assert error.startswith("error: recovery.rank: null, which trains whole matrices, and the exp")


def test_what_is_trained_is_what_the_group_says() -> None:
    """In the published settings, too, and after a search."""
    words = ["experiment=recovery/multipruner", "run=/a", "calibration.path=/b"]
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        assert compose("recover", words).recovery.rank == 16
        whole = compose("recover", [*words, "recovery=full"]).recovery
        after = compose("prune", ["recovery=full"]).recovery
    assert (whole.rank, whole.alpha, whole.dropout, whole.steps) == (None, None, 0, 2000)
    assert (after.rank, after.alpha, after.steps, after.learning_rate) == (None, None, 300, 0.0002)


def test_all_problems_at_once(recover: Recover) -> None:
    """Of the options; then of the shape and of the text together."""
    outcome = recover("run=null")
    wanted = ["run, shape: neither is given; give run=OUTPUT_DIR", "model.path: empty"]
    found = zip(outcome.errors, wanted, strict=True)
    assert all(error.startswith(f"error: {text}") for error, text in found), outcome.errors
    outcome = recover("recovery.steps=0", "recovery.rank=0", "calibration.batch_size=2")
    assert len(outcome.errors) == 3
    outcome = recover("recovery.rank=99", "recovery.sequence_length=300")
    wanted = [
        "recovery.sequence_length: 300, above this model's context of 256 tokens",
        "recovery.rank: 99, above the narrowest",
        "recovery.sequence_length: 300, but the sequences in ",
    ]
    found = zip(outcome.errors, wanted, strict=True)
    assert all(error.startswith(f"error: {text}") for error, text in found), outcome.errors


def test_a_search_that_has_not_ended(recover: Recover, ended: Outcome) -> None:
    (ended.folder / "summary.json").unlink()
    outcome = recover()
    assert outcome.status == 2
    [error] = outcome.errors
    assert error.startswith(f"error: run: the search in {ended.folder} has not ended; go on")


def test_text_that_is_empty(recover: Recover, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" \n")
    outcome = recover("calibration=text", "calibration.path=text.txt")
    assert outcome.errors == ["error: calibration.path: text.txt is empty"]


def test_token_ids_of_another_tokenizer(recover: Recover, tmp_path: Path) -> None:
    ids = tokens(24, 32, vocab=300).numpy().astype(np.int64)
    save_file({"input_ids": ids}, tmp_path / "other.safetensors")
    outcome = recover("calibration=tokens", "calibration.path=other.safetensors")
    assert outcome.status == 2
    [error] = outcome.errors
    assert "outside the model's vocabulary 0..127. Was it made with another model's" in error


def test_a_model_without_a_tokenizer(recover: Recover, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A text.\n\nAnother one.\n" * 50)
    outcome = recover("calibration=text", "calibration.path=text.txt")
    assert outcome.status == 2
    [error] = outcome.errors
    assert error.startswith("error: model.path: ")
    assert "tokenizer" in error


def test_memory_that_is_not_there(recover: Recover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        LocalMachine, "detect", lambda *, num_gpus=None: LocalMachine(2, 0, 500_000_000)
    )
    outcome = recover("recovery.micro_batch_size=4")
    assert outcome.status == 2
    [error] = outcome.errors
    assert error.startswith(
        "error: recovery.micro_batch_size: 4 sequences of 32 tokens take about 0.6 GB of memory "
        "with this model, 0.5 GB are free"
    )


def test_a_recovery_of_a_recovery(recover: Recover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    outcome = recover()
    again = recover(f"run={outcome.folder}", folder="again")
    assert again.status == 2
    assert again.errors == [
        f"error: run: {outcome.folder} is a recovery already; give the search that it is of, and "
        "another output_dir"
    ]


def test_a_folder_of_another_recovery(recover: Recover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    outcome = recover()
    other = recover("recovery.rank=5")
    assert other.status == 2
    assert "recovery.rank: 4 there, 5 here" in other.output
    assert (outcome.folder / "recovery.json").exists()


def test_a_search_that_went_on_since(
    recover: Recover, ended: Outcome, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    outcome = recover()
    lines = (ended.folder / "trajectory.jsonl").read_text().splitlines(keepends=True)
    (ended.folder / "trajectory.jsonl").write_text("".join(lines[:-1]))
    refused = cli("export", f"run={outcome.folder}", folder="exported")
    assert refused.status == 2
    [error] = refused.errors
    assert error.startswith(f"error: run: the search in {ended.folder} is not what it was when ")


def test_a_damaged_file_is_named(
    recover: Recover, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    outcome = recover()
    path = outcome.folder / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    refused = cli("export", f"run={outcome.folder}", folder="exported")
    assert refused.status == 2
    assert refused.errors == [
        f"error: run: {path} has changed since the recovery ended; remove the folder and recover "
        "again"
    ]
    (outcome.folder / "recovery.json").write_text("{")
    refused = cli("export", f"run={outcome.folder}", folder="exported")
    [error] = refused.errors
    assert error.startswith(f"error: run: {outcome.folder}/recovery.json is damaged: ")


def test_moving_search_and_recovery_together(
    recover: Recover, ended: Outcome, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    recover(f"output_dir={ended.folder}/recovery")
    moved = ended.folder.rename(tmp_path / "moved")
    exported = cli("export", f"run={moved}/recovery", folder="exported")
    assert exported.status == 0, exported.output
