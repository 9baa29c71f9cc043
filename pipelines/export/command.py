"""`multipruner export`: the shape that a search came to goes in, a checkpoint that other
software opens comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from pipelines.cli.console import log_to
from pipelines.config.export import ExportConfig
from pipelines.config.overrides import option_of
from pipelines.export.export_run import (
    dense_model,
    export_folder,
    export_run,
    made_by,
    options_of,
    write_checked,
)
from pipelines.runs.saved_run import read_run
from pipelines.runs.shape_file import ShapeFile
from pruning.export.folder import Export, check_target
from pruning.models.find import find_checkpoint


def export(raw: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Writes one checkpoint; returns what its manifest says.

    Raises:
        InputError: invalid input, found before any weight is read.
        ExportError: the folder does not compute what the search's masked model does.
    """
    log_to(None)
    config = ExportConfig.of(raw, [option_of(override) for override in overrides])
    if config.run is not None:
        return export_run(read_run(config.run), config)
    assert config.output_dir is not None
    assert config.shape is not None
    target = export_folder(config.output_dir)
    check_target(target)
    checkpoint = find_checkpoint(
        config.model.path,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
    )
    checkpoint.check_weights()
    found = ShapeFile.read(config.shape, config.importance, config.model.path, checkpoint)
    described = {
        "model": dense_model(
            config.model.path, config.model.revision, found.fingerprint, found.accounting
        ),
        **made_by(),
    }
    return write_checked(
        Export(
            checkpoint,
            found.accounting,
            found.shape,
            found.order,
            config.format,
            config.dtype,
            described,
            options_of(config, config.model.path),
        ),
        target,
    )
