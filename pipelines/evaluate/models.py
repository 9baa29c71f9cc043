"""What an evaluation measures: a pruned model and its dense one, found in a search's folder, in an
export, or by name.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from pipelines.config.evaluate import EvaluateConfig
from pipelines.runs.saved_run import PastRun, read_run
from pipelines.runs.shape_file import ShapeFile
from pruning.costs.accounting import Accounting
from pruning.costs.measured import Role, weight_file_bytes
from pruning.errors import InputError
from pruning.export import transformers
from pruning.export.exported_checkpoint import open_export
from pruning.importance.channel_order import ChannelOrder
from pruning.models.checkpoint import Checkpoint
from pruning.models.display_name import display_name
from pruning.models.dtypes import resolve_dtype
from pruning.models.find import find_checkpoint
from pruning.shape import ModelShape
from workers.tasks import BenchmarkSpec

log = logging.getLogger(__name__)

WINDOW_TOKENS = 2048
"""Length of a window of text, as the papers measure perplexity, where no other is asked for."""

ModelRole = Role | Literal["recovered"]

_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.tiktoken",
)


@dataclass(frozen=True, slots=True, eq=False)
class EvaluatedModel:
    """One model to be measured.

    Args:
        shape: what remains of the checkpoint once it is sorted by `order`; None takes the
            checkpoint as it is.
        num_stored_parameters: values in its weights; of a shape, what an export of it holds.
    """

    role: ModelRole
    checkpoint: Checkpoint
    fingerprint: str
    dtype: str
    num_stored_parameters: int
    shape: ModelShape | None = None
    order: ChannelOrder | None = None

    def spec(self, *, batch_size: int, max_length: int | None, num_threads: int) -> BenchmarkSpec:
        shape = self.shape.text if self.shape is not None else None
        return BenchmarkSpec(
            self.checkpoint, self.dtype, shape, self.order, batch_size, max_length, num_threads
        )

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was made for, if it says so."""
        return getattr(self.checkpoint.config(), "max_position_embeddings", None)

    @property
    def disk_bytes(self) -> int:
        """Of the weight files; of a shape, what they would be in the type that the dense weights
        are stored in.
        """
        if self.shape is None:
            return weight_file_bytes(self.checkpoint.folder)
        return self.num_stored_parameters * int(
            getattr(torch, self.checkpoint.stored_dtype()).itemsize
        )

    def tokenizer_fingerprint(self) -> str:
        """SHA-256 over the files that its tokenizer is made from, 32 hexadecimal digits."""
        digest = hashlib.sha256()
        for path in sorted(
            {
                path
                for pattern in _TOKENIZER_FILES
                for path in self.checkpoint.folder.glob(pattern)
                if path.is_file()
            }
        ):
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True, eq=False)
class ModelsUnderTest:
    """The models of one evaluation, the dense one first.

    Args:
        name: of the dense model, as a person calls it.
        shape: canonical text of what was pruned to; None for a dense model.
        ratio: removed parameters / all parameters, 0..1.
        run: the search that it comes from.
    """

    name: str
    source: str
    evaluated: tuple[EvaluatedModel, ...]
    shape: str | None
    ratio: float | None
    run: PastRun | None = None

    @property
    def main(self) -> EvaluatedModel:
        """What was asked for: the recovered or pruned model if there is one."""
        return self.evaluated[-1]


def find_models(config: EvaluateConfig, *, on_gpu: bool) -> ModelsUnderTest:
    """Finds the models and checks that they are what they should be.

    Raises:
        InputError: a folder is missing, damaged, or of another model.
    """
    if config.run is not None:
        return models_of_run(config, read_run(config.run))
    if config.checkpoint is not None:
        return _of_export(config, config.checkpoint, on_gpu=on_gpu)
    dense = _dense_model(config, on_gpu=on_gpu)
    if config.shape is not None:
        return _of_shape(config, config.shape, dense)
    return ModelsUnderTest(display_name(config.model.path), config.model.path, (dense,), None, None)


def models_of_run(config: EvaluateConfig, run: PastRun) -> ModelsUnderTest:
    """The model that a search came to, or a recovery of it; on request with what it was made from.

    Raises:
        InputError: its architecture cannot be opened in that shape.
    """
    accounting, dtype = (
        run.accounting,
        run.dtype if config.model.dtype == "auto" else config.model.dtype,
    )
    dense = EvaluatedModel(
        "dense", run.checkpoint, run.fingerprint, dtype, accounting.num_dense_parameters
    )
    recovered = run.recovery is not None
    order = replace(run.order, recovery=None) if recovered else run.order
    pruned = _pruned_to(dense, accounting, run.shape, order)
    models: tuple[EvaluatedModel, ...] = (dense, pruned)
    if recovered:
        models = (*models, replace(pruned, role="recovered", order=run.order))
    if not config.evaluation.dense:
        models = models[-1:]
    return ModelsUnderTest(
        run.model_name, str(run.folder), models, run.shape.text, accounting.ratio(run.shape), run
    )


def _of_shape(config: EvaluateConfig, file: str, dense: EvaluatedModel) -> ModelsUnderTest:
    """The model that a shape file says, and on request the dense one."""
    found = ShapeFile.read(
        file, config.importance, config.model.path, dense.checkpoint, dense.fingerprint
    )
    shape, accounting = found.shape, found.accounting
    pruned = _pruned_to(dense, accounting, shape, found.order)
    models = (dense, pruned) if config.evaluation.dense else (pruned,)
    return ModelsUnderTest(
        found.model_name, str(found.path), models, shape.text, accounting.ratio(shape)
    )


def _pruned_to(
    dense: EvaluatedModel, accounting: Accounting, shape: ModelShape, order: ChannelOrder
) -> EvaluatedModel:
    """The same checkpoint in a shape.

    Raises:
        InputError: its architecture cannot be opened in that shape.
    """
    problems = transformers.problems(
        dense.checkpoint.config(), accounting.family, accounting.geometry, shape
    )
    if problems:
        raise InputError("\n".join(problems))
    stored = accounting.num_stored_parameters(shape)
    return replace(dense, role="pruned", num_stored_parameters=stored, shape=shape, order=order)


def _of_export(config: EvaluateConfig, path: str, *, on_gpu: bool) -> ModelsUnderTest:
    checkpoint, manifest = open_export(path)
    checkpoint.check_weights()
    dtype = resolve_dtype(config.model.dtype, on_gpu=on_gpu)
    pruned = EvaluatedModel(
        "pruned",
        checkpoint,
        checkpoint.fingerprint(),
        dtype,
        int(manifest["num_stored_parameters"]),
    )
    dense = _dense_of_export(config, manifest, on_gpu=on_gpu) if config.evaluation.dense else None
    models = (pruned,) if dense is None else (dense, pruned)
    return ModelsUnderTest(
        str(manifest["model"]["name"]),
        str(checkpoint.folder),
        models,
        str(manifest["shape"]),
        float(manifest["ratio"]),
    )


def _dense_of_export(
    config: EvaluateConfig, manifest: dict[str, Any], *, on_gpu: bool
) -> EvaluatedModel | None:
    described = manifest["model"]
    if config.model.path.strip():
        dense = _dense_model(config, on_gpu=on_gpu)
        if dense.fingerprint != described["fingerprint"]:
            raise InputError(
                f"model.path: {config.model.path} is not the model that {config.checkpoint} was "
                f"pruned from, which is {described['name']}"
            )
        return dense
    log.info(
        "checkpoint: %s was pruned from %s; model.path= of that model shows it beside",
        config.checkpoint,
        described["name"],
    )
    return None


def _dense_model(config: EvaluateConfig, *, on_gpu: bool) -> EvaluatedModel:
    model = config.model
    checkpoint = find_checkpoint(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    checkpoint.check_weights()
    dtype = resolve_dtype(model.dtype, on_gpu=on_gpu)
    num_values = weight_file_bytes(checkpoint.folder) // int(
        getattr(torch, checkpoint.stored_dtype()).itemsize
    )
    return EvaluatedModel("dense", checkpoint, checkpoint.fingerprint(), dtype, num_values)


def cost_roles(models: Sequence[EvaluatedModel]) -> dict[Role, EvaluatedModel]:
    """A recovered model costs what it did before: it is measured as the pruned one."""
    return {"pruned" if model.role == "recovered" else model.role: model for model in models}


def window_length(wanted: int | None, models: Sequence[EvaluatedModel]) -> int:
    """Tokens of a window of text: what was asked for, else `WINDOW_TOKENS`, or the context if that
    is smaller.

    Raises:
        InputError: more than a model's context.
    """
    contexts = [model.context_length for model in models if model.context_length]
    if wanted is not None and contexts and wanted > min(contexts):
        raise InputError(
            f"evaluation.sequence_length: {wanted}, above this model's context of "
            f"{min(contexts)} tokens"
        )
    return wanted or min([WINDOW_TOKENS, *contexts])
