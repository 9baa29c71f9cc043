"""Writes an export so that the folder is there whole and verified, or not under its name."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from pruning import disk
from pruning.costs.accounting import Accounting
from pruning.errors import ExportError, InputError
from pruning.export import decilm, gguf, transformers
from pruning.export.manifest import BAD, UNVERIFIED, VERIFIED, write_manifest
from pruning.export.model_card import model_card
from pruning.export.read_gguf import verify_read_back
from pruning.export.reference import Reference, reference_of
from pruning.export.source import ExportSource
from pruning.export.surgery import PrunedLayer
from pruning.export.verify_gguf import PACKAGE, has_llama_cpp, verify_gguf
from pruning.export.verify_transformers import TOLERANCES, passed, probe_tokens, verify_export
from pruning.importance.channel_order import ChannelOrder
from pruning.models.checkpoint import Checkpoint
from pruning.models.families import Family
from pruning.models.geometry import Geometry
from pruning.models.loaded_model import LoadedModel
from pruning.recovery.prepared import prepared
from pruning.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Format:
    """One format: what it cannot express, which layers it has, how it is written, and how what was
    written is opened and compared.

    `write` returns the number of values in the weights; `verify` takes folder, tokens and what the
    masked model made of them, and returns the `program` that opened the folder and the differences,
    or None where there was no way to compute anything from it.

    Args:
        vectors: type that norms and biases are written in; None: that of the matrices.
    """

    problems: Callable[[PretrainedConfig, Family, Geometry, ModelShape], list[str]]
    layers_of: Callable[[ModelShape, Family], tuple[PrunedLayer, ...]]
    write: Callable[..., int]
    verify: Callable[[Path, torch.Tensor, Reference], dict[str, Any] | None]
    vectors: str | None = None


def _in_transformers(
    folder: Path, input_ids_BT: torch.Tensor, reference: Reference
) -> dict[str, Any]:
    found = verify_export(folder, input_ids_BT, reference.logits, reference.dtype)
    return {"program": "transformers", **found}


def _in_llama_cpp(
    folder: Path, input_ids_BT: torch.Tensor, reference: Reference
) -> dict[str, Any] | None:
    """In llama.cpp itself where it is installed; else the file is read back and computed here."""
    [path] = folder.glob("*.gguf")
    if has_llama_cpp():
        program, tolerance = "llama.cpp", TOLERANCES[reference.weights_dtype]
        found = verify_gguf(
            path, input_ids_BT, reference.logits, tolerance, num_threads=torch.get_num_threads()
        )
        return {"program": program, **found}
    read = verify_read_back(path, input_ids_BT, reference.logits, TOLERANCES[reference.dtype])
    return None if read is None else {"program": "gguf", **read}


FORMATS = {
    "transformers": Format(
        transformers.problems, transformers.layers_of, transformers.write, _in_transformers
    ),
    "decilm": Format(decilm.problems, decilm.layers_of, decilm.write, _in_transformers),
    "gguf": Format(gguf.problems, gguf.layers_of, gguf.write, _in_llama_cpp, vectors="float32"),
}


def format_problems(
    name: str, config: PretrainedConfig, family: Family, geometry: Geometry
) -> list[str]:
    """What keeps a format from holding shapes of this model, before one is known; empty if nothing
    does.
    """
    found = (
        FORMATS[name].problems(config, family, geometry, shape)
        for shape in transformers.shapes_to_try(geometry)
    )
    return next((problems for problems in found if problems), [])


@dataclass(frozen=True, slots=True, eq=False)
class Export:
    """What is to be written.

    Args:
        order: in which `shape` counts its channels and heads.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the type that the weights are stored
            in.
        description: what the manifest and the card say beyond what is found here.
        options: of the format's `write`.
    """

    checkpoint: Checkpoint
    accounting: Accounting
    shape: ModelShape
    order: ChannelOrder
    format: str
    dtype: str
    description: Mapping[str, Any]
    options: Mapping[str, Any]

    def problems(self) -> list[str]:
        """What the format cannot express, one message each; found before anything is loaded."""
        config, family = self.checkpoint.config(), self.accounting.family
        geometry = self.accounting.geometry
        found = FORMATS[self.format].problems(config, family, geometry, self.shape)
        if not family.prunes_widths and geometry.narrowed(self.shape):
            found.append(
                f"shape: {self.shape.text} narrows blocks, but the family {family.model_type!r} is "
                "pruned by whole blocks only; keep each block whole or leave it out"
            )
        if self.format == "gguf":
            found += gguf.tokenizer_problems(
                self.checkpoint.folder, config, self.options.get("tokenizer_gguf")
            )
        return found


def write_export(export: Export, target: Path) -> dict[str, Any]:
    """Loads the dense model, writes the pruned one to a temporary folder, verifies it, and renames
    that to `target`; returns what its manifest says.

    Raises:
        InputError: the format cannot express the shape, or `target` is there already.
        ExportError: what was written does not compute what the masked model does. It is kept as
            `target` with `.bad` added.
    """
    check_target(target)
    problems = export.problems()
    if problems:
        raise InputError("\n".join(problems))
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_room(export, target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        description = _write(export, folder)
        if description["status"] == BAD:
            bad = target.with_name(target.name + ".bad")
            shutil.rmtree(bad, ignore_errors=True)
            disk.rename(folder, bad)
            raise ExportError(
                f"{bad} is not what the search found, so it is not called {target.name}: "
                f"{description['verification']}"
            )
        if target.exists():
            target.rmdir()  # empty: see check_target
        disk.rename(folder, target)
    return description


def check_target(target: Path) -> None:
    """Refuses a folder in which something would be overwritten.

    Raises:
        InputError: see above.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(
            f"output_dir: {target} is there already and not empty; give another folder"
        )


def _check_room(export: Export, parent: Path) -> None:
    width = getattr(
        torch, export.checkpoint.stored_dtype() if export.dtype == "auto" else export.dtype
    ).itemsize
    needed, free = (
        export.accounting.num_stored_parameters(export.shape) * width,
        shutil.disk_usage(parent).free,
    )
    if needed > free:
        raise InputError(
            f"output_dir: the weights take {needed / 1e9:.1f} GB, {parent} has {free / 1e9:.1f} "
            "GB left; give a folder on another disk"
        )


def _write(export: Export, folder: Path) -> dict[str, Any]:
    form, accounting, shape = FORMATS[export.format], export.accounting, export.shape
    stored = export.checkpoint.stored_dtype()
    dtype = stored if export.dtype == "auto" else export.dtype
    dense = LoadedModel.of(export.checkpoint.load(dtype=stored))
    config = dense.model.config
    dense = prepared(dense, export.order)
    tokens = probe_tokens(config.vocab_size, getattr(config, "max_position_embeddings", None) or 48)
    reference = reference_of(
        dense, shape, tokens, stored=stored, written=dtype, vectors=form.vectors
    )
    num_values = form.write(
        folder,
        ExportSource(dense, shape, export.checkpoint.folder, getattr(torch, dtype)),
        **export.options,
    )
    del dense
    gc.collect()  # modules refer to one another; the fresh process needs the room
    verified = _verified(form, folder, tokens, reference)
    if verified["status"] == UNVERIFIED:
        for path in folder.glob("*.gguf"):
            path.rename(path.with_stem(f"{path.stem}-{UNVERIFIED}"))
    description: dict[str, Any] = {
        "format": export.format,
        "needs_code": any(folder.glob("*.py")),
        **export.description,
        "dtype": dtype,
        "shape": shape.text,
        "layers": [asdict(layer) for layer in form.layers_of(shape, accounting.family)],
        "ratio": accounting.ratio(shape),
        "num_parameters": {
            "dense": accounting.num_dense_parameters,
            "pruned": accounting.num_parameters(shape),
        },
        "num_stored_parameters": num_values,
        "weight_files": sorted(
            path.name for pattern in ("*.safetensors", "*.gguf") for path in folder.glob(pattern)
        ),
        "channel_order": export.order.fingerprint,
        **verified,
    }
    (folder / "README.md").write_text(model_card(description), encoding="utf-8")
    write_manifest(folder, description)
    return description


def _verified(
    form: Format, folder: Path, tokens: torch.Tensor, reference: Reference
) -> dict[str, Any]:
    try:
        result = form.verify(folder, tokens, reference)
    except RuntimeError as error:
        return {"status": BAD, "verification": str(error)}
    if result is None:
        return {
            "status": UNVERIFIED,
            "verification": (
                f"not opened: llama.cpp is not installed (pip install {PACKAGE}), and memory has "
                "no room for a tensor of the file in float32"
            ),
        }
    return {"status": VERIFIED if passed(result) else BAD, "verification": result}
