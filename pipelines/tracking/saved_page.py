"""The MLflow run that a folder names, to add something to it later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.engine import make_url

from pipelines.config.redaction import MASK
from pipelines.tracking.logged_model import PrunedModel
from pipelines.tracking.tracker import Tracker, local_folder

_TIMEOUT_S = 20.0


def unreachable(uri: str, run_id: str | None) -> str | None:
    """Why there is nothing to add to, as far as that is known without asking."""
    if run_id is None:
        return "the search never reached its server"
    if MASK in uri:
        return "the password of its server is not saved"
    if local_folder(uri) is not None and not Path(str(make_url(uri).database)).is_file():
        return "its database is not there any more"
    return None


def add_to_page(
    uri: str,
    run_id: str | None,
    *,
    artifacts: Sequence[Path] = (),
    model: PrunedModel | None = None,
) -> bool:
    """Sends it; False: the server did not take it in time.

    Args:
        model: what is new of the model of the run.
    """
    tracker = Tracker(uri, "", "", 0.0, run_id, lambda _: None, keeps_status=True)
    tracker.start({}, {}, {})
    if model is not None:
        tracker.log_model(model)
    tracker.finish(succeeded=True, artifacts=artifacts, timeout_s=_TIMEOUT_S)
    return not tracker.is_behind
