"""Group `calibration`: its options, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from pipelines.config.groups import at_least, chosen, not_allowed, one_of
from pruning.calibration.spec import SOURCES, CalibrationSpec, MixedSource, MixtureSpec

MIX = "mix"


@dataclass
class SourceConfig:
    """An item of `calibration.sources`; the options of `calibration` with these names say what
    they mean.
    """

    source: str = ""
    share: float = 1.0
    path: str | None = None
    column: str | None = None
    name: str | None = None


@dataclass
class CalibrationConfig:
    """Group `calibration`."""

    source: str = one_of((*SOURCES, MIX))
    path: str | None = MISSING
    column: str | None = MISSING
    sources: list[SourceConfig] = field(default_factory=list)
    num_block_samples: int = MISSING
    num_width_samples: int = MISSING
    num_heldout_samples: int = MISSING
    sequence_length: int = MISSING
    batch_size: int = MISSING
    seed: int = MISSING

    def problems(self) -> list[str]:
        found = not_allowed(self, "calibration.")
        found += at_least(
            self,
            "calibration.",
            num_block_samples=1,
            num_width_samples=1,
            num_heldout_samples=0,
            sequence_length=2,
            batch_size=1,
        )
        if self.source == MIX:
            return found + self._mixture_problems()
        if self.sources:
            found.append(
                f"calibration.sources: {len(self.sources)} given, which have no effect with "
                f"calibration={self.source}; use calibration=mix"
            )
        return found + _path_problems("calibration", self.source, self.path)

    @property
    def path_options(self) -> tuple[str, ...]:
        """The options that name a file."""
        of_sources = (f"calibration.sources.{index}.path" for index in range(len(self.sources)))
        return ("calibration.path", *of_sources)

    def _mixture_problems(self) -> list[str]:
        found = [
            f"calibration.{name}: {value}, which has no effect with calibration=mix; give it to "
            f"one of calibration.sources, as in calibration.sources.0.{name}={value}"
            for name in ("path", "column")
            if (value := getattr(self, name)) is not None
        ]
        wrong: list[str] = []
        for index, each in enumerate(self.sources):
            option = f"calibration.sources.{index}"
            if each.source not in SOURCES:
                why = ": a mixture holds no other mixture, but its sources" * (each.source == MIX)
                allowed = ", ".join(SOURCES)
                wrong.append(f"{option}.source: {each.source!r}{why}; one of {allowed}")
            else:
                found += _path_problems(option, each.source, each.path)
        return found + (wrong or self.mixture().problems())

    def mixture(self) -> MixtureSpec:
        """What `calibration=mix` stands for."""
        return MixtureSpec(
            tuple(
                MixedSource(
                    chosen(each.source, SOURCES), each.share, each.path, each.column, each.name
                )
                for each in self.sources
            ),
            num_block_samples=self.num_block_samples,
            num_width_samples=self.num_width_samples,
            num_heldout_samples=self.num_heldout_samples,
            sequence_length=self.sequence_length,
            seed=self.seed,
        )

    def spec(self) -> CalibrationSpec | MixtureSpec:
        """How to make the calibration sets; call `problems` first."""
        if self.source == MIX:
            return self.mixture()
        return CalibrationSpec(
            source=chosen(self.source, SOURCES),
            num_block_samples=self.num_block_samples,
            num_width_samples=self.num_width_samples,
            num_heldout_samples=self.num_heldout_samples,
            sequence_length=self.sequence_length,
            seed=self.seed,
            path=self.path,
            column=self.column,
        )


def _path_problems(option: str, source: str, path: str | None) -> list[str]:
    """Whether a source has a file where it needs one, and none where it reads none."""
    chosen_as = "calibration=" if option == "calibration" else "source: "
    if source == "pydoc" and path is not None:
        return [
            f"{option}.path: {path}, but {chosen_as}pydoc reads no file; did you "
            f"mean {chosen_as}text?"
        ]
    if source in ("text", "tokens") and path is None:
        return [f"{option}.path: missing; {chosen_as}{source} needs a file"]
    return []
