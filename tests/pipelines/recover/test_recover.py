"""Recoveries of a search of the tiny model: what is written, what other commands make of it, and
that one that was killed goes on.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from mlflow import MlflowClient
from safetensors.torch import load_file

from pipelines.evaluate import benchmarks
from pipelines.runs.pruned_model import pruned_model
from pipelines.runs.saved_run import read_run
from pruning.calibration.token_sets import TokenSet
from pruning.export.exported_checkpoint import open_export
from pruning.export.transformers import layers_of
from pruning.recovery.adapters import add_adapters, add_differences, matrices_of
from pruning.recovery.journal import TrainingFiles
from pruning.recovery.settings import RecoverySettings
from pruning.recovery.training import Recovery
from pruning.scoring.nll import sequence_nll
from tests.conftest import ROOT, tokens
from tests.pipelines.command import Outcome, without_times
from tests.pipelines.conftest import Cli
from tests.pipelines.recover.conftest import QUICK, WHOLE, Recover
from tests.pipelines.tracking.test_description import command_in
from tests.pruning.recovery.recoveries import TOLERANCE, logits
from workers.training import trainer


def metrics(folder: Path, name: str) -> list[tuple[int, float]]:
    """The history of a metric of a recovery in MLflow."""
    client = MlflowClient(f"sqlite:///{folder.parent}/mlflow.db")
    run_id = json.loads((folder / "run.json").read_text())["mlflow_run_id"]
    return [(each.step, each.value) for each in client.get_metric_history(run_id, name)]


def test_a_recovery_says_what_it_is(recover: Recover, ended: Outcome) -> None:
    outcome = recover()
    assert outcome.status == 0, outcome.output
    found = outcome.read("recovery.json")
    assert found["shape"] == ended.summary["shape"]
    assert (found["num_steps"], found["stopped_by"]) == (12, "steps")
    assert found["num_tokens"] == 12 * 4 * 32
    assert (found["settings"]["loss"], found["settings"]["rank"]) == ("kl", 4)
    assert found["text"]["num_sequences"] == 10
    assert (outcome.folder / found["run"]).resolve() == ended.folder
    nll = found["heldout_nll"]
    lines = [json.loads(line) for line in (outcome.folder / "recovery.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(13))
    measured = {line["step"]: line["heldout_nll"] for line in lines if line["heldout_nll"]}
    assert list(measured) == [0, 4, 8, 12]
    assert nll["pruned"] == measured[0]
    assert nll["recovered"] == min(measured.values()) == measured[found["best_step"]]
    assert "update 12 of 12: mean loss " in outcome.output
    said = (
        r"at most 1,536 tokens, 6\d\d\.?\d? MB of memory, \d\.\d\de\+\d\d FLOPs, \d+ s at the rate "
        "of an evaluator of the search"
    )
    assert re.search(said, outcome.output.partition("update 4 of 12")[0])
    assert f"multipruner evaluate run={outcome.folder}" in outcome.output
    assert not (outcome.folder / "checkpoints").exists()
    page = MlflowClient(f"sqlite:///{outcome.folder.parent}/mlflow.db").get_run(
        outcome.read("run.json")["mlflow_run_id"]
    )
    search = json.loads((ended.folder / "run.json").read_text())["mlflow_run_id"]
    assert (page.info.status, page.data.tags["mlflow.parentRunId"]) == ("FINISHED", search)
    assert page.data.params["recovery.rank"] == "4"
    note = page.data.tags["mlflow.note.content"]
    before, after = (found["heldout_perplexity"][name] for name in ("pruned", "recovered"))
    assert f"| perplexity, held-out text | {before:,.4g} | {after:,.4g} |" in note
    command = ["multipruner", "recover", "calibration=tokens", f"run={ended.folder}"]
    assert command_in(note)[: len(command)] == command
    assert "recovery.steps=12" in note


@pytest.mark.parametrize(
    ("words", "trained"),
    [((), "adapters of rank 4 were trained"), (WHOLE, "its blocks were trained")],
)
def test_the_model_is_the_trained_one(
    recover: Recover, ended: Outcome, cli: Cli, words: tuple[str, ...], trained: str
) -> None:
    """Against what is not merged, on the model of the search; and as exported."""
    outcome, ids = recover(*words), tokens()
    assert outcome.status == 0, outcome.output
    wanted, before = logits(adapted(outcome, ended), ids), logits(of_run(ended), ids)
    scale = wanted.abs().max()
    assert float((before - wanted).abs().max() / scale) > 0.01, "it changed nothing"
    assert float((logits(of_run(outcome), ids) - wanted).abs().max() / scale) < TOLERANCE
    for name in ("transformers", "decilm"):
        exported = cli("export", f"run={outcome.folder}", f"format={name}", folder=f"as-{name}")
        assert exported.status == 0, exported.output
        checkpoint, manifest = open_export(str(exported.folder))
        written = logits(checkpoint.load(dtype="float32"), ids)
        assert float((written - wanted).abs().max() / scale) < TOLERANCE
        assert manifest["status"] == "verified"
        assert manifest["recovery"]["settings"]["steps"] == 12
        assert manifest["perplexity"] is None, "those of the search are of another model"
        card = " ".join((exported.folder / "README.md").read_text().split())
        best = outcome.read("recovery.json")["best_step"]
        page = MlflowClient(f"sqlite:///{outcome.folder.parent}/mlflow.db")
        run_id = json.loads((outcome.folder / "run.json").read_text())["mlflow_run_id"]
        sent = {each.path for each in page.list_artifacts(run_id)}
        assert ("adapters.safetensors" in sent) == (not words), "as large as the model"
        assert f"{trained} for {best} updates of 4 x 32 tokens of tokens" in card
        assert "without any training" not in card


def of_run(outcome: Outcome) -> Any:
    return pruned_model(read_run(str(outcome.folder)))


def adapted(outcome: Outcome, searched: Outcome) -> Any:
    """The pruned model with what a recovery has written beside its weights."""
    search, model = read_run(str(searched.folder)), of_run(searched)
    family = search.accounting.family
    sources = [(layer.attention, layer.mlp) for layer in layers_of(search.shape, family)]
    settings = RecoverySettings(**outcome.read("recovery.json")["settings"])
    matrices = matrices_of(model, family, sources)
    whole = settings.rank is None
    weights = add_differences(model, matrices) if whole else add_adapters(model, matrices, settings)
    for name, value in load_file(outcome.folder / "adapters.safetensors").items():
        weights.pop(name).data.copy_(value)
    assert not weights, "some adapters are not in the file"
    return model


def test_it_is_measured_beside_what_it_was_made_from(
    recover: Recover, ended: Outcome, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers of the pruned model, which are in the store, are not taken for its own."""
    text = TokenSet(tokens(6, 24).numpy())
    monkeypatch.setattr(benchmarks, "_windows", lambda *_: ("story", text))
    words = ("evaluation.tasks=[]", "evaluation.texts=[story]", "evaluation.cost_rounds=1")
    words += ("evaluation.cost_prompt_tokens=4", "evaluation.cost_new_tokens=2", "cluster=inline")
    before = cli("evaluate", f"run={ended.folder}", *words, folder=None)
    assert before.status == 0, before.output
    pruned = json.loads((ended.folder / "evaluation.json").read_text())
    outcome = recover()
    after = cli("evaluate", f"run={outcome.folder}", *words, folder=None)
    assert after.status == 0, after.output
    found = outcome.evaluation
    assert found["dense"]["perplexity"] == pruned["dense"]["perplexity"]
    assert found["pruned"]["perplexity"] == pruned["perplexity"]
    ids = torch.tensor(text.input_ids)
    nll = float(sequence_nll(adapted(outcome, ended).eval(), ids).sum()) / (6 * 23)
    assert found["perplexity"]["story"] == pytest.approx(math.exp(nll), rel=1e-5)
    assert found["perplexity"] != pruned["perplexity"]
    assert set(found["cost"]["ratio"]) == set(pruned["cost"]["ratio"])
    words = (*words[2:], "evaluation=none", "evaluation.cost=true")
    assert cli("evaluate", f"run={outcome.folder}", *words, folder=None).status == 0
    assert outcome.evaluation["pruned"] is not None, "where the cost alone is measured"


def test_it_is_on_a_report_beside_its_search(recover: Recover, ended: Outcome, cli: Cli) -> None:
    outcome = recover()
    page = cli("report", f"runs=[{ended.folder},{outcome.folder}]")
    assert page.status == 0, page.output
    values = outcome.read("recovery.json")["heldout_perplexity"]
    dense, pruned, recovered = (f"{values[name]:.2f}" for name in values)
    said = (
        f"updates: perplexity {pruned} to {recovered} on held-out text, where the dense model has "
        f"{dense}"
    )
    text = (page.folder / "report.html").read_text()
    assert said in text
    assert f"{ended.folder.name}, recovered" in text


def stopped_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Ctrl-C, in the update after that one."""
    update = Recovery.update

    def interrupted(recovery: Recovery, number: int) -> Any:
        if number > step:
            raise KeyboardInterrupt
        return update(recovery, number)

    monkeypatch.setattr(Recovery, "update", interrupted)


def curve(folder: Path) -> list[str]:
    return without_times(folder / "recovery.jsonl")


def assert_as_if_undisturbed(outcome: Outcome, undisturbed: Outcome) -> None:
    """The same curve, bit by bit; the same adapters; every update once, in MLflow too."""
    assert outcome.status == 0, outcome.output
    assert curve(outcome.folder) == curve(undisturbed.folder)
    files = [each.folder / "adapters.safetensors" for each in (outcome, undisturbed)]
    assert files[0].read_bytes() == files[1].read_bytes()
    for name, steps in (("loss", range(1, 13)), ("heldout_nll", range(0, 13, 4))):
        lines = [json.loads(line) for line in curve(undisturbed.folder)]
        wanted = [(step, lines[step][name]) for step in steps]
        assert metrics(outcome.folder, f"recover/{name}") == wanted


@pytest.mark.parametrize("step", [2, 4, 6, 11])
def test_one_that_was_stopped_goes_on(
    recover: Recover, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    undisturbed = recover(folder="undisturbed")
    with monkeypatch.context() as patch:
        stopped_after(step, patch)
        stopped = recover()
    assert stopped.status == 130
    assert "To go on: the same command" in stopped.output
    assert len(curve(stopped.folder)) == step + 1
    assert_as_if_undisturbed(recover(), undisturbed)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_around_a_checkpoint(
    recover: Recover, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Lines are there and the checkpoint is not, or it is and nothing was told."""
    undisturbed = recover(folder="undisturbed")
    save = TrainingFiles.save

    def killed(files: TrainingFiles, step: int, write: Any) -> None:
        if moment == "after" or step < 8:
            save(files, step, write)
        if step == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingFiles, "save", killed)
        assert recover().status == 130
    assert_as_if_undisturbed(recover(), undisturbed)


KILLED = """
import os, signal, runpy
from pruning.recovery.training import Recovery
update = Recovery.update
def killed(recovery, step):
    if step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return update(recovery, step)
Recovery.update = killed
runpy.run_module("pipelines.recover", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_a_process_that_was_killed(recover: Recover, ended: Outcome, tmp_path: Path) -> None:
    undisturbed, folder = recover(folder="undisturbed"), tmp_path / "recovered"
    words = [f"run={ended.folder}", *QUICK, f"output_dir={folder}"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(curve(folder)) == 7
    assert_as_if_undisturbed(recover(), undisturbed)


@pytest.mark.ray
@pytest.mark.slow
def test_a_process_of_ray_trains_the_same(recover: Recover) -> None:
    undisturbed = recover(folder="undisturbed")
    outcome = recover("cluster=local", "cluster.num_gpus_per_evaluator=0")
    assert_as_if_undisturbed(outcome, undisturbed)
    assert "update 12 of 12: mean loss " in outcome.output


def test_an_ended_recovery_is_shown_again(
    recover: Recover, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = recover()
    written = {path.name: path.read_bytes() for path in first.folder.glob("recovery.json*")}
    stopped_after(0, monkeypatch)  # an update would be an error
    again = recover()
    assert again.status == 0, again.output
    assert written == {path.name: path.read_bytes() for path in again.folder.glob("recovery.json*")}
    table = first.output[first.output.index("of the parameters removed: recovered in") :]
    assert table in again.output


def test_another_process_that_trains_is_waited_for(
    recover: Recover, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a lost driver has left on a cluster, say."""
    monkeypatch.setattr(trainer, "_HANDOVER_S", 0.1)
    folder = tmp_path / "recovered"
    folder.mkdir()
    with FileLock(folder / ".training"):
        refused = recover()
    assert (refused.status, refused.errors) == (
        2,
        [
            f"error: output_dir: another process trains in {folder}; wait for it, or give another "
            "folder"
        ],
    )
    assert recover().status == 0


def test_other_threads_are_another_recovery(
    recover: Recover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have other last digits."""
    stopped_after(4, monkeypatch)
    assert recover().status == 130
    monkeypatch.undo()
    outcome = recover("cluster.num_cpus_per_evaluator=2")
    assert outcome.status == 2
    assert "cluster.num_cpus_per_evaluator" in outcome.output
    assert recover().status == 0


def test_held_out_text_ends_it(recover: Recover) -> None:
    """Random text is soon learnt by heart, and nothing of it holds elsewhere."""
    outcome = recover("recovery.steps=400", "recovery.patience=2")
    assert outcome.status == 0, outcome.output
    found = outcome.read("recovery.json")
    assert found["stopped_by"] == "patience"
    assert found["num_steps"] == found["best_step"] + 8
    assert "ended because held-out text gained nothing any more" in outcome.output


def test_one_that_gains_nothing_is_no_recovery(recover: Recover, cli: Cli) -> None:
    outcome = recover("recovery.loss=nll", "recovery.patience=2")
    assert outcome.status == 1
    [error] = outcome.errors
    assert error.startswith("error: recovery: 8 updates gained nothing on held-out text")
    refused = cli("export", f"run={outcome.folder}", folder="exported")
    assert (refused.status, refused.errors) == (
        2,
        [
            f"error: run: the recovery in {outcome.folder} has not ended, or gained nothing; give "
            "its multipruner recover again, which goes on or says so"
        ],
    )


def test_what_is_not_finite_ends_it_at_the_last_checkpoint(
    recover: Recover, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Recovery.update

    def poisoned(recovery: Recovery, step: int) -> Any:
        if step == 7:
            next(iter(recovery.parameters.values())).data[0, 0] = math.nan
        return update(recovery, step)

    monkeypatch.setattr(Recovery, "update", poisoned)
    outcome = recover()
    assert outcome.status == 0, outcome.output
    found = outcome.read("recovery.json")
    assert (found["stopped_by"], found["best_step"], found["num_steps"]) == ("not_finite", 4, 4)
    assert (
        "WARNING a loss or gradient was NaN or infinite: what was gained by update 4 is kept"
        in (outcome.output)
    )
    assert len(curve(outcome.folder)) == 5
    assert [step for step, _ in metrics(outcome.folder, "recover/loss")] == [1, 2, 3, 4]
    adapters = load_file(outcome.folder / "adapters.safetensors")
    assert all(torch.isfinite(weight).all() for weight in adapters.values())
