"""Token sets as MLflow shows them: dataset inputs of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.tracking.metrics import DATASET_CONTEXT


@dataclass(frozen=True, slots=True)
class TokenDataset:
    """What MLflow shows as a dataset input of a run."""

    name: str
    digest: str
    source: Mapping[str, Any]
    num_sequences: int
    sequence_length: int


def dataset_inputs(datasets: Mapping[str, TokenDataset]) -> list[Any]:
    """As MLflow takes them, by what the run used them for."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = []
    for context, dataset in datasets.items():
        sizes = {
            "num_sequences": dataset.num_sequences,
            "sequence_length": dataset.sequence_length,
        }
        shown = Dataset(
            name=dataset.name,
            digest=dataset.digest,
            source_type="local",
            source=json.dumps(dict(dataset.source)),
            profile=json.dumps(sizes),
        )
        found.append(DatasetInput(shown, tags=[InputTag(DATASET_CONTEXT, context)]))
    return found
