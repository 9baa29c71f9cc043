"""Which channel order the steps of a run were scored in."""

from __future__ import annotations

from pipelines.runs.files import ALLOCATION, CHANNEL_ORDER, RUN
from pipelines.runs.folder import RunFolder
from pruning.errors import InputError

ORDER = "channel_order"
"""Its fingerprint, in `run.json` and in each step."""


def claim_order(folder: RunFolder, fingerprint: str, *, num_steps: int) -> None:
    """Records the order of the run, or finds it recorded. Versions up to 0.1 did not record it.

    Args:
        fingerprint: of the order that the weights are sorted by now.
        num_steps: that the run has taken by now. Before the first one any order will do, unless an
            allocation was measured in one.

    Raises:
        InputError: the steps were scored in another one.
    """
    recorded = (folder.read(RUN) or {}).get(ORDER)
    if recorded == fingerprint:
        return
    measured = f"the {num_steps} steps there were scored in" if num_steps else ""
    if not measured and (folder.path / ALLOCATION).exists():
        measured = f"{ALLOCATION} was measured in"
    if recorded is not None and measured:
        raise InputError(
            f"output_dir: {folder.path / CHANNEL_ORDER} is not the channel order that {measured}: "
            f"fingerprint {recorded} in {RUN}, {fingerprint} in the file; restore it, or give "
            "another output_dir"
        )
    folder.remember(**{ORDER: fingerprint})
