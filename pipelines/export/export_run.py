"""One export from start to finish: what the manifest says, then the folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipelines.cli.console import print_line
from pipelines.config.export import ExportConfig
from pipelines.runs.files import EVALUATION, read_json_if_there
from pipelines.runs.provenance import git_revision, versions
from pipelines.runs.saved_run import PastRun
from pipelines.tracking.logged_model import MAX_TAG, PrunedModel
from pipelines.tracking.saved_page import add_to_page, unreachable
from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.export.folder import Export, check_target, write_export
from pruning.export.manifest import FILE, check_folder
from pruning.export.model_card import OPENED
from pruning.models.display_name import display_name
from pruning.models.gguf_source import gguf_source
from pruning.shape import ModelShape

log = logging.getLogger(__name__)


_FINGERPRINTS = {
    name: f"{name}.fingerprint" for name in ("model", "calibration.block", "calibration.width")
}
"""What a run's identity calls by the name of the thing."""


def export_run(
    run: PastRun, config: ExportConfig, *, tracking_uri: str | None = None
) -> dict[str, Any]:
    """The same for a search that has ended.

    Args:
        tracking_uri: that of the search, whose password is not saved.
    """
    target = export_folder(config.output_dir) if config.output_dir else run.folder / config.format
    check_target(target)
    described = {
        "model": dense_model(
            run.config.model.path, run.config.model.revision, run.fingerprint, run.accounting
        ),
        **_story(run),
        **made_by(),
    }
    options = options_of(config, run.config.model.path)
    manifest = write_checked(
        Export(
            run.checkpoint,
            run.accounting,
            run.shape,
            run.order,
            config.format,
            config.dtype,
            described,
            options,
        ),
        target,
    )
    if config.log_to_mlflow:
        _log_export(run, config.format, target, tracking_uri or str(run.config.tracking.uri))
    return manifest


def _log_export(run: PastRun, format_name: str, target: Path, uri: str) -> None:
    """The model of the run in MLflow says where its checkpoint is. A search that has not come to
    its target has none yet, and what is exported of it is not what it will be.
    """
    if run.recovery is None and (run.summary or {}).get("status") != "target reached":
        return
    run_id = run.record.get("mlflow_run_id")
    problem = unreachable(uri, run_id)
    if problem is not None:
        log.warning("the export is not in MLflow: %s", problem)
        return
    model = PrunedModel(
        f"{run.model_name} {run.accounting.ratio(run.shape):.0%}",
        tags={f"multipruner.export.{format_name}": str(target)[:MAX_TAG]},
    )
    add_to_page(uri, run_id, model=model)


def is_exported(run: PastRun, target: Path) -> bool:
    """Whether `target` is a whole export of this run as it is now, so that a command that is given
    again has nothing to do.
    """
    if not (target / FILE).is_file():
        return False
    manifest = check_folder(target)
    return bool(
        manifest["shape"] == run.shape.text
        and manifest["channel_order"] == run.order.fingerprint
        and manifest["model"]["fingerprint"] == run.fingerprint
    )


def write_checked(job: Export, target: Path) -> dict[str, Any]:
    """Writes one export and says how its check came out; returns the manifest.

    Raises:
        InputError: the format cannot hold this model or shape.
    """
    problems = job.problems()
    if problems:
        raise InputError("\n".join(problems))
    log.info(
        "%s: %.1f %% of the parameters removed; writing %s",
        job.description["model"]["name"],
        100 * job.accounting.ratio(job.shape),
        target,
    )
    description = write_export(job, target)
    checked = description["verification"]
    if isinstance(checked, Mapping):
        log.info(
            "%s: logits differ by %.1e of the largest, %.0e are allowed",
            OPENED[checked["program"]],
            checked["difference"],
            checked["tolerance"],
        )
    else:
        log.warning("%s: %s", target, checked)
    print_line(
        f"{target}: {description['num_stored_parameters']:,} values, {description['dtype']}, "
        f"{description['status']}; README.md there says how to open it"
    )
    return description


def options_of(config: ExportConfig, model_path: str) -> dict[str, Any]:
    """What `write` of the format takes."""
    if config.format != "gguf":
        return {"max_shard_bytes": int(config.max_shard_gb * 1e9)}
    given = (
        Path(config.tokenizer_gguf).expanduser()
        if config.tokenizer_gguf
        else gguf_source(model_path)
    )
    return {"tokenizer_gguf": given}


def dense_model(
    path: str, revision: str | None, fingerprint: str, accounting: Accounting
) -> dict[str, Any]:
    """The dense model, named so that others can find it: a path on this machine would tell them
    nothing.
    """
    local = path.startswith("package:") or Path(path).expanduser().exists()
    return {
        "name": display_name(path),
        "hub_id": None if local else path,
        "revision": revision,
        "fingerprint": fingerprint,
        "model_type": accounting.family.model_type,
    }


def _story(run: PastRun) -> dict[str, Any]:
    """How the shape was found, and what was measured of it."""
    saved, identity, summary = run.config, run.record["identity"], run.summary or {}
    recovered = {
        "recovery": _recovery(run),
        "evaluation": _same_shape(
            read_json_if_there(run.folder / EVALUATION, option="run"), run.shape
        ),
    }
    if not run.lines:
        return recovered
    groups: dict[str, Any] = {
        group: OmegaConf.to_container(saved[group]) for group in ("calibration", "search")
    }
    settings = {
        f"{group}.{name}": value
        for group, fields in groups.items()
        for name, value in fields.items()
        if name != "path"
    }
    steps = [
        {name: line[name] for name in ("step", "stage", "removed", "ratio", "perplexity")}
        for line in run.lines
    ]
    return {
        "settings": settings
        | {_FINGERPRINTS.get(name, name): value for name, value in identity.items()},
        # that of the search is of the model before it was recovered
        "perplexity": None if run.recovery else summary.get("perplexity"),
        **recovered,
        **{
            name: summary.get(name)
            for name in ("flops_per_token", "kv_cache_bytes_per_token", "context_length")
        },
        "trajectory": steps,
    }


def _recovery(run: PastRun) -> dict[str, Any] | None:
    """What was trained, without what is of this machine; None: nothing was."""
    if run.recovery is None:
        return None
    return {name: value for name, value in run.recovery.items() if name not in ("run", "model")}


def _same_shape(evaluation: dict[str, Any] | None, shape: ModelShape) -> dict[str, Any] | None:
    """An evaluation of an earlier shape of the same folder says nothing of this one."""
    return evaluation if evaluation and evaluation.get("shape") == shape.text else None


def made_by() -> dict[str, Any]:
    """What the manifest says of how it was made."""
    return {
        "versions": versions(),
        "git_revision": git_revision(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def export_folder(path: str) -> Path:
    """A path as the user gave it, absolute."""
    return Path(path).expanduser().absolute()
