"""Floating-point types by name."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

DTYPES = ("auto", "float32", "bfloat16", "float16")
NUM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_NATIVE = frozenset({"avx512_bf16", "amx_bf16", "bf16", "arm_bf16"})


def resolve_dtype(dtype: str, *, on_gpu: bool) -> str:
    """`auto` is bfloat16 where the hardware computes it natively (GPUs; CPUs with AVX512-BF16, AMX
    or Arm's BF16), else float32.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if on_gpu or _NATIVE & cpu_features() else "float32"


def cpu_features() -> frozenset[str]:
    """What the CPU can do: on Linux as the kernel lists it, else, or where that cannot be read, as
    torch does.

    Both read the CPU's own identification; importing torch for it would take a second.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # a container may hide it
            listed = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
            return frozenset(listed.split())
    import torch

    return frozenset(name for name, has in torch.cpu.get_capabilities().items() if has)
