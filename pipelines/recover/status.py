"""The status file of a recovery: updates, what they have gained so far, and the time left."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from pipelines.runs.folder import RunFolder
from pipelines.status.status_file import Heartbeat
from pruning.recovery.journal import Line, best_step
from pruning.scoring.score import perplexity


class RecoveryStatus:
    """Writes the file of one recovery.

    Args:
        steps: updates at most.
    """

    def __init__(self, folder: RunFolder, steps: int) -> None:
        self._steps = steps
        self._heartbeat = Heartbeat(folder, recovery=self._of([]))

    def running(self) -> AbstractContextManager[None]:
        """See `Heartbeat.running`."""
        return self._heartbeat.running(reached="recovered")

    def told(
        self, lines: Sequence[Line], *, rate: float | None = None, left_s: float | None = None
    ) -> None:
        """Takes all lines so far.

        Args:
            rate: updates per second.
        """
        self._heartbeat.beat(recovery=self._of(lines), rate=rate, left_s=left_s)

    def _of(self, lines: Sequence[Line]) -> dict[str, Any]:
        nll = (
            {
                "dense": lines[0]["dense_nll"],
                "pruned": lines[0]["heldout_nll"],
                "recovered": lines[best_step(lines)]["heldout_nll"],
            }
            if lines
            else {}
        )
        return {
            "step": max(0, len(lines) - 1),
            "steps": self._steps,
            "loss": lines[-1]["loss"] if lines else None,
            "heldout_perplexity": {name: perplexity(value) for name, value in nll.items()},
        }
