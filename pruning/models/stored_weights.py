"""The safetensors files of a folder: which there are, what their headers say, and whether that is
what a configuration describes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig
from transformers.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

from pruning.errors import InputError, first_line
from pruning.models.meta_model import meta_model
from pruning.models.shards import INDEX
from pruning.models.stored_json import read_json

_SINGLE = "model.safetensors"
_CODE = ("*.bin", "*.pt", "*.pth", "*.ckpt")
"""Weights that could run code when opened."""
_EIGHT_BITS_OR_FEWER = ("F8_", "F6_", "F4")
"""How the names of floating-point types begin that only quantized weights are stored in."""
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_NUM_NAMED = 3
"""Tensors that a message names; of more it says how many."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files, sorted by path: those of the folder, and those in folders below it
    that the index names.

    Raises:
        InputError: there are none, or the index names one elsewhere.
    """
    named = [] if (folder / _SINGLE).is_file() else indexed_files(folder)
    files = sorted({*folder.glob("*.safetensors"), *(path for path in named if path.is_file())})
    if files:
        return files
    others = sorted(path.name for pattern in _CODE for path in folder.glob(pattern))
    instead = (
        f" (it has {', '.join(others[:3])}, which could run code when opened: convert them to "
        "safetensors first)"
        if others
        else ""
    )
    raise InputError(f"model.path: no *.safetensors in {folder}{instead}")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, for the time of the context.

    Raises:
        InputError: it cannot be read, is empty or damaged.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"model.path: cannot read {path}: {first_line(error)}; download it again"
            ) from error
        yield file


def stored_dtype(folder: Path) -> str:
    """The type that most values of the weights are stored in: `float32`, `bfloat16` or `float16`.

    Raises:
        InputError: it is another one.
    """
    values: Counter[str] = Counter()
    for path in weight_files(folder):
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_slice(name)
                values[tensor.get_dtype()] += math.prod(tensor.get_shape())
    most = max(values, key=values.__getitem__, default="none")
    if most not in _DTYPES:
        raise InputError(
            f"model.path: the weights in {folder} are stored as {most}; expected one of "
            f"{', '.join(_DTYPES)}"
        )
    return _DTYPES[most]


def check_finite(path: Path) -> None:
    """Reads every value of one safetensors file.

    Raises:
        InputError: one is NaN or infinite. A search would take the block that it is in for harmful,
            and would remove that first.
    """
    with opened(path) as file:
        names = file.keys()
        wrong = [name for name in names if not _is_finite(file.get_tensor(name))]
    if wrong:
        more = f" and {len(wrong) - _NUM_NAMED} more" if len(wrong) > _NUM_NAMED else ""
        raise InputError(
            f"model.path: NaN or infinite values in {', '.join(wrong[:_NUM_NAMED])}{more} "
            f"of {path}; expected finite weights. Download the model again"
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Both ends are NaN where any value is. Nothing of the tensor's size is allocated."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return all(math.isfinite(end.item()) for end in tensor.aminmax())


def check_weights(folder: Path, config: PretrainedConfig, *, trust_remote_code: bool) -> None:
    """Compares the headers of the weight files with the model that the configuration describes,
    under the names that transformers gives the tensors. No weight is read: it would fill up what
    is missing with random numbers.

    Raises:
        InputError: a tensor is missing, has another shape or is quantized, or a file is missing or
            damaged.
    """
    model, found = _loaded_without_values(folder, config, trust_remote_code=trust_remote_code)
    other = {
        name: f"is {list(theirs)}" for name, theirs, _ in found["mismatched_keys"]
    } | dict.fromkeys(found["missing_keys"], "is missing")
    wrong = [
        f"{name} {other[name]}, expected {list(tensor.shape)}"
        for name, tensor in model.state_dict().items()
        if name in other
    ]
    if wrong:
        more = f"; and {len(wrong) - _NUM_NAMED} more" if len(wrong) > _NUM_NAMED else ""
        raise InputError(
            f"model.path: the weights in {folder} do not fit its config.json: "
            f"{'; '.join(wrong[:_NUM_NAMED])}{more}. "
            "Use weights and config.json of one model, or download both again"
        )


def _loaded_without_values(
    folder: Path, config: PretrainedConfig, *, trust_remote_code: bool
) -> tuple[Any, dict[str, Any]]:
    """The model on the meta device, and what transformers says of the tensors that it was given."""
    kind: Any = type(meta_model(config, trust_remote_code=trust_remote_code))
    verbosity = get_verbosity()
    set_verbosity_error()  # it has a table for everybody, and here is one message
    try:
        model, found = kind.from_pretrained(
            None,
            config=config,
            state_dict=_headers(folder),
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        set_verbosity(verbosity)
    return model, found


def _headers(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the files that transformers loads, without its values."""
    headers: dict[str, torch.Tensor] = {}
    for path in loaded_files(folder):
        with opened(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        _refuse_quantized(folder, {name: part.get_dtype() for name, part in slices.items()})
        headers |= {
            name: torch.empty(part.get_shape(), device="meta") for name, part in slices.items()
        }
    return headers


def _refuse_quantized(folder: Path, dtypes: Mapping[str, str]) -> None:
    """A `config.json` may be silent about it."""
    for name, dtype in dtypes.items():
        if dtype.startswith(_EIGHT_BITS_OR_FEWER):
            raise InputError(
                f"model.path: the weights in {folder} are quantized ({name} is {dtype}), which "
                "cannot be cut; use the unquantized model"
            )


def loaded_files(folder: Path) -> list[Path]:
    """Those that transformers loads: one, else those of the index, there or not, else all.

    Raises:
        InputError: there are none, or the index names one elsewhere.
    """
    single = folder / _SINGLE
    return [single] if single.is_file() else indexed_files(folder) or weight_files(folder)


def indexed_files(folder: Path) -> list[Path]:
    """Those that the index names, there or not; none without an index.

    Raises:
        InputError: the index names no files, or one outside of the folder.
    """
    index = folder / INDEX
    if not index.is_file():
        return []
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(
            f"model.path: weight_map in {index} names no files; expected the file of each tensor. "
            "Download it again"
        )
    for name in sorted(set(names.values())):
        path = PurePath(name)
        if path.is_absolute() or ".." in path.parts:
            raise InputError(
                f"model.path: {index} names {name}, which is outside of the folder; expected files "
                "in it or in folders below. Take the model from somewhere else"
            )
    return sorted({folder / name for name in names.values()})
