"""The model that a search came to, in memory: for a program that goes on with it."""

from __future__ import annotations

from transformers import PreTrainedModel

from pipelines.runs.saved_run import PastRun
from pruning.errors import InputError
from pruning.export import transformers
from pruning.models.loaded_model import LoadedModel
from pruning.recovery.prepared import prepared


def pruned_model(run: PastRun) -> PreTrainedModel:
    """On the CPU, in the type that the search scored in, compensated if the search was.

    Raises:
        InputError: its architecture cannot be opened in that shape.
    """
    checkpoint, accounting = run.checkpoint, run.accounting
    problems = transformers.problems(
        checkpoint.config(), accounting.family, accounting.geometry, run.shape
    )
    if problems:
        raise InputError("\n".join(problems))
    dense = LoadedModel.of(checkpoint.load(dtype=run.dtype))
    return transformers.pruned_model(prepared(dense, run.order), run.shape)
