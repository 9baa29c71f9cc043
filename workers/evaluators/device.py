"""What an evaluator computes on: the GPUs that it was given, else the CPU."""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import sys

import torch
from transformers import PreTrainedModel

from pruning.errors import InputError
from pruning.models.checkpoint import Checkpoint
from pruning.scoring.arithmetic import Arithmetic
from workers.tasks import EvaluatorInfo

_M_MMAP_THRESHOLD = -3  # malloc.h

log = logging.getLogger(__name__)


class Device:
    """The device of this process.

    Args:
        num_threads: CPU threads.
        num_gpus: GPUs to use, the first ones; None: all that the process sees, as where Ray shows
            it no others.
    """

    def __init__(self, num_threads: int, num_gpus: int | None = None) -> None:
        _give_freed_tensors_back()
        torch.set_num_threads(num_threads)
        self.visible_gpus = tuple(
            gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu
        )
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        self.num_gpus = seen if num_gpus is None else min(seen, num_gpus)
        if self.visible_gpus and not seen:
            log.warning(
                "GPUs %s are assigned to this evaluator, but torch sees no CUDA device: it "
                "scores on the CPU",
                ",".join(self.visible_gpus),
            )
        self.torch = torch.device("cuda" if self.num_gpus else "cpu")

    def load(self, checkpoint: Checkpoint, dtype: str) -> PreTrainedModel:
        """The model, spread over all GPUs if there are several.

        Raises:
            InputError: this machine does not see the checkpoint, or it cannot be loaded.
        """
        if not checkpoint.folder.is_dir():
            raise InputError(
                f"model.path: {checkpoint.folder} is not there on {socket.gethostname()}: "
                "evaluators read the weights from the path that the driver "
                "found them at, so put the checkpoint (for hub models HF_HOME, for GGUF files "
                "MULTIPRUNER_CACHE) on storage that every node sees"
            )
        return checkpoint.load(
            dtype=dtype, device=self.torch, device_map="balanced" if self.num_gpus > 1 else None
        )

    def describe(self, model: PreTrainedModel) -> EvaluatorInfo:
        """Where this is, and what it computes with, given the model that it holds."""
        return EvaluatorInfo(
            os.getpid(), socket.gethostname(), self.visible_gpus, Arithmetic.of(model)
        )

    def free_memory(self) -> None:
        """Gives what torch keeps for later back to the GPU."""
        if self.torch.type == "cuda":
            torch.cuda.empty_cache()


def _give_freed_tensors_back() -> None:
    """Has glibc return the memory of large tensors as soon as they are freed.

    Left alone it raises its own threshold, and what a layer frees stays between the outputs that
    are kept: on SmolLM2 at 2 x 2,048 tokens in float32 that held 0.7 GB more, in some runs.
    Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 4 * 2**20)
