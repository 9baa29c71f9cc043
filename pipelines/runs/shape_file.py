"""A pruned shape in a file of its own, and the order that its widths count channels in."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipelines.runs.files import (
    AUTHORS_CONFIG,
    CHANNEL_ORDER,
    RUN,
    SHAPE,
    SOLUTION,
    read_json_if_there,
    read_with,
)
from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.export.authors_config import read_authors_config
from pruning.importance.channel_order import ChannelOrder, channel_order
from pruning.models.checkpoint import Checkpoint
from pruning.models.display_name import display_name
from pruning.models.loaded_model import LoadedModel
from pruning.shape import ModelShape


@dataclass(frozen=True, slots=True, eq=False)
class ShapeFile:
    """The shape in a file, with its model at hand.

    Args:
        model_path: of the dense model, as it was given.
        fingerprint: of the dense model.
    """

    path: Path
    model_path: str
    fingerprint: str
    checkpoint: Checkpoint
    accounting: Accounting
    shape: ModelShape
    order: ChannelOrder

    @classmethod
    def read(
        cls,
        file: str,
        importance: str | None,
        model_path: str,
        checkpoint: Checkpoint,
        fingerprint: str | None = None,
    ) -> Self:
        """Reads a file.

        Args:
            importance: that it counts channels in; None: the order beside it.
            fingerprint: of the checkpoint, where the caller knows it.

        Raises:
            InputError: it cannot be read, is of another model, or counts in an order that is not
                known.
        """
        path = Path(file).expanduser()
        accounting = Accounting(checkpoint.config(), trust_remote_code=checkpoint.trust_remote_code)
        shape = read_shape(path, accounting)
        fingerprint = fingerprint or checkpoint.fingerprint()
        check_model(path, model_path, fingerprint)
        order = order_of(shape, path, importance, checkpoint, accounting)
        return cls(path.absolute(), model_path, fingerprint, checkpoint, accounting, shape, order)

    @property
    def model_name(self) -> str:
        return display_name(self.model_path)


def read_shape(path: Path, accounting: Accounting) -> ModelShape:
    """shape.json, or the authors' pruning_config.json."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"shape: cannot read {path}: {error}; give {SHAPE} of a search, or a "
            f"{AUTHORS_CONFIG} of the method's authors"
        ) from error
    geometry = accounting.geometry
    try:
        if isinstance(data, dict) and "pruned_attn_idx" in data:
            return read_authors_config(
                data, geometry.dense, channels_per_kv_head=geometry.channels_per_kv_head
            )
        shape = ModelShape.from_json(data if isinstance(data, dict) else {})
    except InputError as error:
        raise InputError(
            f"shape: {path}: {error}; give {SHAPE} of a search, or a {AUTHORS_CONFIG} of the "
            "method's authors"
        ) from error
    problems = geometry.problems(shape)
    if problems:
        raise InputError(
            "\n".join(f"shape: {path} does not fit this model: {problem}" for problem in problems)
        )
    return shape


def check_model(path: Path, model_path: str, fingerprint: str) -> None:
    """Whether a shape file is of this model, as far as the solution or the search that it lies in
    tells.

    Args:
        fingerprint: of the model at `model_path`.

    Raises:
        InputError: it was found for another one.
    """
    folder = path.parent
    solution = read_json_if_there(folder / SOLUTION, option="shape", fields=("fingerprint",))
    record = read_json_if_there(folder / RUN, option="shape", fields=("identity",))
    identity = record["identity"] if record else {}
    found = identity.get("model") if isinstance(identity, dict) else None
    if solution is not None:
        found = solution["fingerprint"]
    if path.name in (SHAPE, AUTHORS_CONFIG) and found not in (None, fingerprint):
        raise InputError(
            f"model.path: {model_path} (fingerprint {fingerprint}) is not the model that {path} "
            f"was found for, whose fingerprint is {found}; give that one"
        )


def order_of(
    shape: ModelShape,
    path: Path,
    importance: str | None,
    checkpoint: Checkpoint,
    accounting: Accounting,
) -> ChannelOrder:
    """The order that the widths of a shape file refer to. Whole blocks refer to none."""
    geometry, beside = accounting.geometry, path.parent / CHANNEL_ORDER
    narrowed = geometry.narrowed(shape)
    if importance is None and beside.exists():
        return read_with(ChannelOrder.load, beside, option="shape")
    if importance is None and narrowed:
        raise InputError(
            f"importance: {path} narrows blocks, and no {CHANNEL_ORDER} lies beside "
            "it, so it is not known which channels remain; give "
            "importance=l1 (the published order) or none (as stored), or run= instead of shape="
        )
    if importance == "l1" and narrowed:
        dense = LoadedModel.of(checkpoint.load(dtype=checkpoint.stored_dtype()))
        order = channel_order(dense, "l1")
        del dense
        gc.collect()  # modules refer to one another; the export loads the model again
        return order
    return ChannelOrder.as_stored(geometry)
