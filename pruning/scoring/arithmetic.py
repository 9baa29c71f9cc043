"""What decides the last digits of a result besides the model and its input: whoever computes says
so itself, and results that differ in any of it are not mixed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from pruning.scoring.nll import chunk_tokens

SCORING_VERSION = 2
"""Of how scores, answers and sums are computed here: one more with each change of their bits."""

VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
)
"""Of the environment: they choose the kernels of cuBLAS, torch, oneDNN and MKL."""

_CPUINFO = Path("/proc/cpuinfo")
_PROCESSOR_FIELDS = (
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "CPU implementer",
    "CPU variant",
    "CPU part",
)
"""Of `/proc/cpuinfo`, on x86 and on Arm: libraries choose kernels by them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """What one evaluator computes with.

    Args:
        device: kind of device, such as `cpu AVX2` or `cuda NVIDIA H100 80GB HBM3`.
        num_threads: CPU threads.
        processor: model of the CPU where that computes; empty on a GPU.
        torch: version with its build, such as `2.13.0+cu130`.
        transformers: version.
        scoring: `SCORING_VERSION`, and how many tokens' logits are computed at one time.
        attention: implementation, such as `sdpa`.
        precision: of products of float32 matrices, as torch is set.
        variables: those of `VARIABLES` that are set.
        code: digest of the model's own code; empty where that is of transformers.
    """

    device: str
    num_threads: int
    processor: str = ""
    torch: str = ""
    transformers: str = ""
    scoring: str = ""
    attention: str = ""
    precision: str = ""
    variables: str = ""
    code: str = ""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        """That of this process with a model that is loaded where it will run."""
        device = model.device
        on_gpu = device.type == "cuda"
        return cls(
            device=f"cuda {torch.cuda.get_device_name(device)}" if on_gpu else cpu_name(),
            num_threads=torch.get_num_threads(),
            processor="" if on_gpu else processor_name(),
            torch=torch.__version__,
            transformers=importlib.metadata.version("transformers"),
            scoring=f"{SCORING_VERSION}, {chunk_tokens(device)} tokens",
            attention=str(getattr(model.config, "_attn_implementation", None)),
            precision=torch.get_float32_matmul_precision(),
            variables=" ".join(
                f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)
            ),
            code=_code_of(type(model)),
        )

    @property
    def digest(self) -> str:
        """SHA-256 over all fields, 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, other: Arithmetic) -> list[str]:
        """`field: own value, other value` of each field that differs, in words."""
        return [
            f"{field.name}: {_shown(mine)}, {_shown(theirs)}"
            for field in fields(self)
            if (mine := getattr(self, field.name)) != (theirs := getattr(other, field.name))
        ]


def _shown(value: object) -> str:
    return str(value) if value != "" else "none"


def cpu_name() -> str:
    """This machine's kind of CPU, as `Arithmetic.device` has it."""
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def this_machine(other: Mapping[str, Any], num_threads: int) -> dict[str, Any]:
    """What a measurement beside this process computes with, on the kind of device of another one:
    the fields by which devices are told apart.

    Args:
        other: an arithmetic as JSON.
    """
    on_cpu = str(other.get("device", "")).startswith("cpu")
    gpu = f"cuda {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "none"
    return {
        **other,
        "device": cpu_name() if on_cpu else gpu,
        "processor": processor_name() if on_cpu else "",
        "num_threads": num_threads,
    }


@cache
def processor_name() -> str:
    """The model of this machine's first CPU; its vendor's name alone says less."""
    try:
        first, _, _ = _CPUINFO.read_text(encoding="utf-8").partition("\n\n")
    except OSError:
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in first.splitlines())
    found = {name.strip(): value.strip() for name, _, value in lines}
    words = [f"{name} {found[name]}" for name in _PROCESSOR_FIELDS if name in found]
    return ", ".join(words) or platform.machine()


def _code_of(kind: type[PreTrainedModel]) -> str:
    """Digest of the Python files beside those of a model's classes that are of no package."""
    folders = {
        Path(inspect.getfile(base)).parent
        for base in kind.__mro__
        if base.__module__.startswith("transformers_modules.")
    }
    digest = hashlib.sha256()
    for path in sorted(file for folder in folders for file in folder.glob("*.py")):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:32] if folders else ""
