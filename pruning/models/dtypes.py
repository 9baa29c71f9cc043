"""Floating-point types by name."""

from __future__ import annotations

DTYPES = ("auto", "float32", "bfloat16", "float16")


def resolve_dtype(dtype: str, *, on_gpu: bool) -> str:
    """`auto` is bfloat16 where the hardware computes it natively (GPUs; CPUs with AVX512-BF16, AMX
    or Arm's BF16), else float32.
    """
    if dtype != "auto":
        return dtype
    import torch  # a second that a known type need not wait for

    capabilities = torch.cpu.get_capabilities()
    native = on_gpu or any(
        capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16")
    )
    return "bfloat16" if native else "float32"
