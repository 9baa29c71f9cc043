"""Options `search.lazy.*`: how a search leaves candidates out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from omegaconf import MISSING

from pipelines.config.groups import at_least
from pruning.search.settings import LazySettings


@dataclass
class LazyConfig:
    """Of search.selection=lazy: candidates are scored in the order of their last known change,
    their score minus that of the shape before.

    Args:
        wave_size: Candidates that are scored together before it is decided whether more are; the
            same for any number of evaluators.
        tolerance: Nats per token. Scoring stops when the next candidate's last known change exceeds
            the best new one by more.
        rescore_every: Steps after which all candidates are scored, counted from the beginning of
            each stage, whose first step is one of them; 1 is every step.
        near_layers: A removal makes the candidates of its layer, and of so many layers on either
            side, be scored again in the next step.
    """

    wave_size: int = MISSING
    tolerance: float = MISSING
    rescore_every: int = MISSING
    near_layers: int = MISSING

    @property
    def settings(self) -> LazySettings:
        """Call `problems` first."""
        return LazySettings(
            wave_size=self.wave_size,
            tolerance=self.tolerance,
            rescore_every=self.rescore_every,
            near_layers=self.near_layers,
        )

    def problems(self) -> list[str]:
        found = at_least(self, "search.lazy.", wave_size=1, rescore_every=1, near_layers=0)
        if not 0 <= self.tolerance < math.inf:
            found.append(
                f"search.lazy.tolerance: {self.tolerance:g}; it is in nats per token, 0 or above"
            )
        return found
