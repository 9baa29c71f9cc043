"""What is trained on the matrices of a pruned model, and as it is stored: by the layer of the dense
model that each matrix comes from. That is a low-rank adapter, or what is added to a whole matrix.

Shape letters: R rank, O output channels and I input channels of a matrix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from pruning.errors import InputError
from pruning.models.families import Family
from pruning.recovery.settings import RecoverySettings

_ADAPTER = "default"
"""What peft calls the only one."""
_SIDES = ("lora_A", "lora_B")
_WHOLE = "difference"
_PARTS = (*_SIDES, _WHOLE)
"""Of what is trained on a matrix: names in files end with one."""

Sources = Sequence[tuple[int | None, int | None]]
"""For each layer of a pruned model the layers of the dense one that its attention and its MLP come
from; None for a block that is gone.
"""


@dataclass(frozen=True, slots=True)
class AdaptedMatrix:
    """One matrix that is trained.

    Args:
        path: of its module in the pruned model.
        layer: of the dense model that it comes from.
        module: its path in that layer.
    """

    path: str
    layer: int
    module: str

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"{self.layer}.{self.module}"


@dataclass(frozen=True, slots=True, eq=False)
class Adapters:
    """As stored: what is added to the matrices of one shape.

    Args:
        shape: canonical text; the adapters fit no other.
        scale: alpha / rank; 1 of whole matrices.
        pairs: by `AdaptedMatrix.key`, A [R, I] and B [O, R] of what is added: scale B A.
        differences: the same of whole matrices, [O, I] of what is added.
    """

    shape: str
    scale: float
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    differences: Mapping[str, torch.Tensor]

    def added(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What is added to each matrix, [O, I] float32, by `AdaptedMatrix.key`."""
        for key, (lora_a, lora_b) in self.pairs.items():
            yield key, self.scale * (lora_b @ lora_a)
        yield from self.differences.items()


def matrices_of(model: PreTrainedModel, family: Family, sources: Sources) -> list[AdaptedMatrix]:
    """The linear layers in the blocks of a pruned model, such as q, k, v, o, gate, up and down.

    Raises:
        InputError: there is none.
    """
    found = list(_matrices(model, family, sources))
    if not found:
        raise InputError(
            f"run: the blocks of architecture {family.model_type!r} have no linear layers, which "
            "is what recover trains"
        )
    return found


def _matrices(model: PreTrainedModel, family: Family, sources: Sources) -> Iterator[AdaptedMatrix]:
    layers = zip(family.decoder_layers(model), sources, strict=True)
    for number, (layer, of_blocks) in enumerate(layers):
        for block, source in zip((family.attention, family.mlp), of_blocks, strict=True):
            if source is None:
                continue
            for name, module in layer.get_submodule(block).named_modules(prefix=block):
                if isinstance(module, nn.Linear):
                    yield AdaptedMatrix(f"{family.layers}.{number}.{name}", source, name)


def add_adapters(
    model: PreTrainedModel, matrices: Sequence[AdaptedMatrix], settings: RecoverySettings
) -> dict[str, nn.Parameter]:
    """Puts adapters into a pruned model, whose own weights stay as they are; returns what is
    trained, float32, by the name that it has in files.

    B is zero, so that the model computes what it did. A is drawn by `settings.seed`.
    """
    assert settings.rank is not None
    from peft import LoraConfig, inject_adapter_in_model  # takes a second to import

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=[matrix.path for matrix in matrices],
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    found: dict[str, nn.Parameter] = {}
    for matrix in matrices:
        module: Any = model.get_submodule(matrix.path)
        for side in _SIDES:
            weight = getattr(module, side)[_ADAPTER].weight
            weight.data = weight.data.float()
            found[f"{matrix.key}.{side}"] = weight
    return found


class _Added(nn.Module):
    """A weight and what is added to it in float32, rounded to the weight's type: what is stored is
    what was trained. The gradient is that of the rounded sum.
    """

    def __init__(self, weight_OI: torch.Tensor) -> None:
        super().__init__()
        self.difference = nn.Parameter(torch.zeros_like(weight_OI, dtype=torch.float32))

    def forward(self, weight_OI: torch.Tensor) -> torch.Tensor:
        return (weight_OI.float() + self.difference).to(weight_OI.dtype)


def add_differences(
    model: PreTrainedModel, matrices: Sequence[AdaptedMatrix]
) -> dict[str, nn.Parameter]:
    """Has whole matrices of a pruned model trained, by what is added to them, which is zero at
    first; returns that, float32, by the name that it has in files.
    """
    found: dict[str, nn.Parameter] = {}
    for matrix in matrices:
        module = model.get_submodule(matrix.path)
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        added = _Added(weight)
        parametrize.register_parametrization(module, "weight", added)
        found[f"{matrix.key}.{_WHOLE}"] = added.difference
    return found


@contextmanager
def dropping(model: PreTrainedModel, matrices: Sequence[AdaptedMatrix]) -> Iterator[None]:
    """The dropout of the adapters, and no other that the model may have."""
    modules: list[Any] = [model.get_submodule(matrix.path) for matrix in matrices]
    model.eval()
    try:
        for each in modules:
            each.lora_dropout.train()
        yield
    finally:
        model.eval()


@contextmanager
def merged(model: PreTrainedModel, matrices: Sequence[AdaptedMatrix]) -> Iterator[None]:
    """The model as it is stored: adapters added to the weights, which are rounded to their type.
    Afterwards every weight is what it was, to the bit.
    """
    modules: list[Any] = [model.get_submodule(matrix.path) for matrix in matrices]
    weights = [module.base_layer.weight for module in modules]
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for module, weight in zip(modules, weights, strict=True):
                lora_a, lora_b = (getattr(module, side)[_ADAPTER].weight for side in _SIDES)
                weight.copy_(weight.float() + module.scaling[_ADAPTER] * (lora_b @ lora_a))
        for module in modules:
            module.enable_adapters(False)
        yield
    finally:
        for module, weight, before in zip(modules, weights, kept, strict=True):
            module.enable_adapters(True)
            weight.data.copy_(before)


def read_adapters(path: Path, *, fingerprint: str | None = None) -> Adapters:
    """Adapters from a file that `adapter_metadata` describes.

    Args:
        fingerprint: what the file must have; see `adapter_fingerprint`.

    Raises:
        InputError: the file is not there, or is not the one.
    """
    if not path.is_file():
        raise InputError(
            f"run: {path} is not there; every machine that computes reads there what a "
            "recovery has trained"
        )
    if fingerprint is not None and adapter_fingerprint(path) != fingerprint:
        raise InputError(
            f"run: {path} has changed since the recovery ended; remove the folder and recover again"
        )
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["recovery"])
        names = file.keys()
        pairs = {
            key: (file.get_tensor(f"{key}.lora_A"), file.get_tensor(f"{key}.lora_B"))
            for key in _keys(names, "lora_A")
        }
        differences = {key: file.get_tensor(f"{key}.{_WHOLE}") for key in _keys(names, _WHOLE)}
    return Adapters(said["shape"], float(said["scale"]), pairs, differences)


def _keys(names: Sequence[str], part: str) -> list[str]:
    """Of the matrices that have a part of this name."""
    return sorted(name.removesuffix(f".{part}") for name in names if name.endswith(f".{part}"))


def write_adapters(checkpoint: Path, target: Path) -> None:
    """The adapters of a checkpoint, without what its training needs to go on."""
    with safe_open(checkpoint, framework="pt") as file:
        said = json.loads(file.metadata()["recovery"])
        names = [name for name in file.keys() if name.rpartition(".")[2] in _PARTS]  # noqa: SIM118
        parts = {name: file.get_tensor(name) for name in names}
    del said["step"]
    save_file(parts, target, metadata={"recovery": json.dumps(said)})


def adapter_metadata(shape: str, settings: RecoverySettings, **more: Any) -> dict[str, str]:
    """Of a file with adapters. One entry: of several, safetensors writes a random order."""
    said = {"shape": shape, "scale": settings.scale, **more}
    return {"recovery": json.dumps(said)}


def adapter_fingerprint(path: Path) -> str:
    """SHA-256 over a file, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
