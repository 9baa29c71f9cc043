"""Running out of memory, which is no fault of the model or of what was asked of it."""

from __future__ import annotations

import torch


def is_out_of_memory(error: Exception) -> bool:
    """CUDA's allocator has an exception for it, the CPU's has a sentence."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(
        error
    )
