"""What `pipelines.reproduce` takes: all of `pipelines.prune`, and how to compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

from omegaconf import MISSING, DictConfig

from pipelines.config.expected import ExpectedConfig
from pipelines.config.groups import checked, one_of
from pipelines.config.prune import PruneConfig

MODES = ("counts", "shape", "search")


@dataclass
class ReproduceConfig(PruneConfig):
    """Everything that `pipelines.reproduce` takes."""

    mode: str = one_of(MODES)
    shape: str | None = MISSING
    record: str | None = MISSING
    record_as: str | None = MISSING

    @classmethod
    def given_with(cls, config: DictConfig, given: Sequence[str]) -> Self:
        """See `pipelines.config.groups.checked`; `given` are the names of the options that the
        command gives.
        """

        def problems(typed: Self) -> list[str]:
            return typed.problems() + (
                typed.problems_of_recording(given)
                if typed.record is not None
                else typed.problems_of_comparing() + typed.problems_of_recovery(given)
            )

        return checked(cls, config, problems)

    @property
    def reference(self) -> ExpectedConfig:
        assert self.expected is not None
        return self.expected

    @property
    def of_search(self) -> PruneConfig:
        """Without what is compared, so that the folder is that of a search like any other."""
        return PruneConfig(
            **{field.name: getattr(self, field.name) for field in fields(PruneConfig)}
        )

    def problems_of_recovery(self, given: Sequence[str]) -> list[str]:
        return self.recovery.refused(given, "reproduce compares searches; leave out")

    def problems_of_comparing(self) -> list[str]:
        found = []
        if self.expected is None:
            found.append(
                "expected: missing; give experiment=NAME with figures, such as "
                "multipruner/llama2_7b_22, or make one of a search: record=OUTPUT_DIR"
            )
        if self.resume:
            found.append(
                "resume: true; leave it out: the same command with the same output_dir goes on"
            )
        if self.shape is not None and self.mode != "shape":
            found.append(
                f"shape: {self.shape}, which has no effect with mode={self.mode}; it is for "
                "mode=shape"
            )
        if self.record_as is not None:
            found.append(
                f"record_as: {self.record_as}, which has no effect without record=OUTPUT_DIR"
            )
        if self.mode == "shape" and not (self.evaluation.tasks or self.evaluation.texts):
            found.append(
                "evaluation: nothing to compare; give evaluation.tasks or evaluation.texts"
            )
        return found

    def problems_of_recording(self, given: Sequence[str]) -> list[str]:
        others = [name for name in given if name not in ("record", "record_as")]
        found = [
            f"{name}: has no effect with record=, which takes everything from that search"
            for name in others
        ]
        return found + (
            []
            if self.record_as
            else ["record_as: missing; give the name of the experiment, such as mine/smollm2_10"]
        )
