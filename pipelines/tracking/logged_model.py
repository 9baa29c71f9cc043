"""The pruned model of a run in MLflow: a LoggedModel, and a version of a registered model.

No weights are sent: what MLflow keeps is an external model, a name with the folders of the run and
of its exports, the metrics that were measured of it, and the datasets that they are of.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.tracking.metrics import MODEL_VERSIONS

MODEL_TYPE = "multipruner"
"""By which MLflow's pages and searches find the models of this program."""

MAX_TAG = 5_000
"""Characters that MLflow takes in a tag of a registered model."""

_EXTERNAL = "mlflow.model.isExternal"


@dataclass(frozen=True, slots=True)
class PrunedModel:
    """What MLflow is told of one model.

    Args:
        name: that a person recognizes.
        params: what decided it.
        tags: what it is, and where.
        register: the registered model that it becomes a version of; None: of none.
    """

    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    register: str | None = None


def log_model(client: Any, run_id: str, experiment_id: str, model: PrunedModel) -> str:
    """Makes the model of a run, if it is not there yet, with the current tags; its id."""
    model_id = find_model(client, run_id, experiment_id)
    if model_id is None:
        model_id = _create(client, run_id, experiment_id, model)
    client.set_logged_model_tags(model_id, dict(model.tags))
    return model_id


def find_model(client: Any, run_id: str, experiment_id: str) -> str | None:
    """The id of the model of a run."""
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    return next((str(each.model_id) for each in found), None)


def _create(client: Any, run_id: str, experiment_id: str, model: PrunedModel) -> str:
    """As `mlflow.create_external_model`, which works on a server that a whole process shares."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models.model import MLMODEL_FILE_NAME
    from mlflow.models.utils import get_external_mlflow_model_spec

    made = client.create_logged_model(
        experiment_id,
        name=_allowed(model.name),
        source_run_id=run_id,
        tags={**model.tags, _EXTERNAL: "true"},
        params=dict(model.params),
        model_type=MODEL_TYPE,
    )
    with tempfile.TemporaryDirectory() as folder:  # a registered model needs this file
        get_external_mlflow_model_spec(made).save(Path(folder) / MLMODEL_FILE_NAME)
        client.log_model_artifacts(made.model_id, folder)
    client.finalize_logged_model(made.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, 0)])
    return str(made.model_id)


def register_model(
    client: Any, run_id: str | None, model_id: str | None, model: PrunedModel
) -> None:
    """A new version of the registered model, unless the model of this run is one already."""
    from mlflow.exceptions import MlflowException

    assert model.register is not None
    assert model_id is not None
    try:
        client.create_registered_model(model.register)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = client.search_model_versions(f"name = '{model.register}'")
    if all(each.run_id != run_id for each in known):
        version = client.create_model_version(
            model.register,
            client.get_logged_model(model_id).artifact_location,
            run_id=run_id,
            model_id=model_id,
            tags=dict(model.tags),
            await_creation_for=0,
        )
        # which a server notes on the model by itself, and a database does not
        noted = json.loads(client.get_logged_model(model_id).tags.get(MODEL_VERSIONS, "[]"))
        entry = {"name": model.register, "version": int(version.version)}
        if entry not in noted:
            client.set_logged_model_tags(model_id, {MODEL_VERSIONS: json.dumps([*noted, entry])})


def _allowed(name: str) -> str:
    """Without the characters that MLflow does not take in the name of a model."""
    return re.sub(r"""[/:."']""", "-", name.replace("%", "pct"))
