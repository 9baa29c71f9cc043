"""A folder of pipelines.export as a checkpoint: whole as its manifest says, and opened by our own
classes, never by the code that lies in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import (  # type: ignore[attr-defined]
    CONFIG_MAPPING_NAMES,
)

from pruning.errors import InputError
from pruning.export import decilm
from pruning.export.manifest import check_folder
from pruning.export.transformers import dense_type, register_family
from pruning.models.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class ExportedCheckpoint(Checkpoint):
    """A pruned model on disk.

    It opens in every process, of which each must know its classes first.
    """

    def config(self) -> PretrainedConfig:
        self._register()
        config: PretrainedConfig = AutoConfig.from_pretrained(
            self.folder, trust_remote_code=False, local_files_only=True
        )
        return config

    def load(
        self, *, dtype: str, device: torch.device | str = "cpu", device_map: str | None = None
    ) -> PreTrainedModel:
        self._register()
        return Checkpoint.load(self, dtype=dtype, device=device, device_map=device_map)

    def _register(self) -> None:
        model_type = str(json.loads((self.folder / "config.json").read_text()).get("model_type"))
        dense = dense_type(model_type)
        if dense is not None:
            register_family(dense)
        elif model_type == decilm.MODEL_TYPE:
            decilm.register()
        elif model_type not in CONFIG_MAPPING_NAMES:
            raise InputError(
                f"checkpoint: {self.folder} is of the architecture {model_type!r}, which opens "
                "elsewhere; give an export with format=transformers"
            )


def open_export(path: str) -> tuple[ExportedCheckpoint, dict[str, Any]]:
    """The checkpoint in a folder, and its manifest.

    Raises:
        InputError: the folder was not written by pipelines.export, or is not as it was written.
    """
    folder = Path(path).expanduser().absolute()
    manifest = check_folder(folder)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"checkpoint: {folder} has format={manifest.get('format')}, which transformers does "
            "not open; give an export with format=transformers"
        )
    checkpoint = ExportedCheckpoint(folder)
    checkpoint.config()
    return checkpoint, manifest
