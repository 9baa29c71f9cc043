"""Pruned models in MLflow: tied to what was measured of them, ranked, and registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli, Search
from tests.tiny_search import DEAD_END


def client_of(tmp_path: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


def models(client: MlflowClient) -> list[Any]:
    """All models of the experiment, those with the lowest held-out perplexity first."""
    experiment = client.get_experiment_by_name("multipruner")
    assert experiment is not None
    order = [{"field_name": "metrics.result/heldout_perplexity", "ascending": True}]
    return list(client.search_logged_models([experiment.experiment_id], order_by=order))


def test_points_of_a_sweep_are_ranked_and_registered(
    cli: Cli, arguments: list[str], tmp_path: Path
) -> None:
    words = [word for word in arguments if not word.startswith("search.target_ratio=")]
    grid = "search.target_ratio=[0.1,0.25]"
    outcome = cli("sweep", *words, grid, "tracking.register=tiny", folder="sweep")
    assert outcome.status == 0, outcome.output
    points, client = outcome.read("sweep.json")["points"], client_of(tmp_path)
    ranked = models(client)
    by_run = {each.source_run_id: each for each in ranked}
    assert set(by_run) == {row["mlflow_run_id"] for row in points}
    for row in points:
        model = by_run[row["mlflow_run_id"]]
        assert str(model.status) == "READY"
        measured = {each.key: each for each in model.metrics}
        heldout = measured["result/heldout_perplexity"]
        assert heldout.value == row["values"]["heldout_perplexity"]
        assert (heldout.dataset_name, measured["result/ratio"].value) == (
            "tokens-heldout",
            row["ratio"],
        )
        [used] = [
            each.dataset
            for each in client.get_run(row["mlflow_run_id"]).inputs.dataset_inputs
            if each.dataset.name == "tokens-heldout"
        ]
        assert heldout.dataset_digest == used.digest
        assert model.tags["multipruner.run"] == str(outcome.folder / row["folder"])
    values = [
        next(each.value for each in model.metrics if each.key == "result/heldout_perplexity")
        for model in ranked
    ]
    assert values == sorted(values)
    assert len(set(values)) == 2
    versions = client.search_model_versions("name = 'tiny'")
    assert {each.run_id for each in versions} == set(by_run)
    noted = [json.loads(each.tags["mlflow.modelVersions"]) for each in ranked]
    assert sorted(each["version"] for [each] in noted) == [1, 2]
    uploaded = [path for path in tmp_path.rglob("mlartifacts/**/models/*/**/*") if path.is_file()]
    assert {path.name for path in uploaded} == {"MLmodel"}


def test_an_export_is_of_the_same_model_and_goes_on_without_mlflow(
    search: Search, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = search("tracking.register=tiny")
    run, client = f"run={ended.folder}", client_of(tmp_path)
    assert cli("export", run, folder="hf").status == 0
    [model] = models(client)
    assert model.tags["multipruner.export.transformers"] == str(tmp_path / "hf")
    assert search("resume=true", bare=True).status == 0
    assert [each.model_id for each in models(client)] == [model.model_id], "made once"
    assert len(client.search_model_versions("name = 'tiny'")) == 1, "registered once"
    assert cli("export", run, "format=transformers", "log_to_mlflow=false", folder="b").status == 0
    [model] = models(client)
    assert model.tags["multipruner.export.transformers"] == str(tmp_path / "hf")
    (tmp_path / "mlflow.db").unlink()
    away = cli("export", run, folder="c")
    assert away.status == 0
    assert "the export is not in MLflow: its database is not there any more" in away.output
    assert not (tmp_path / "mlflow.db").exists()


def test_a_registry_that_is_broken_costs_nothing(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MlflowException("no registry here")

    monkeypatch.setattr("pipelines.tracking.tracker.FINISH_TIMEOUT_S", 2.0)
    monkeypatch.setattr(MlflowClient, "create_registered_model", broken)
    outcome = search("tracking.register=tiny")
    assert outcome.status == 0
    assert "no registry here" in outcome.output
    run = client_of(tmp_path).get_run(outcome.read("run.json")["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["result/ratio"] == outcome.summary["ratio"]


def test_a_name_that_no_model_can_have(search: Search) -> None:
    outcome = search("tracking.register=a/b")
    assert outcome.status == 2
    assert outcome.errors == [
        "error: tracking.register: 'a/b'; give the name of a registered model, without any of "
        "/ : ' \" %"
    ]


def test_what_never_reached_its_target_is_no_model(search: Search, tmp_path: Path) -> None:
    outcome: Outcome = search(*DEAD_END, "tracking.register=tiny")
    assert outcome.status == 2
    client = client_of(tmp_path)
    assert models(client) == []
    assert client.search_model_versions("name = 'tiny'") == []
