"""How long each block of a model takes at each size, as measured on one device, and what that says
of any shape.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pruning.canonical_json import dump_json
from pruning.costs.speed import SpeedSettings, Spread
from pruning.costs.target import Cost, CostName
from pruning.errors import InputError
from pruning.shape import UNITS, ModelShape, Unit

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = get_args(Phase)

log = logging.getLogger(__name__)

_NOISY = 1 / 16
"""Half of what lies between two sizes, which are about an eighth of a block apart."""

TRANSFORMERS = "transformers"
"""The engine that evaluators run models in."""

ENGINES = ("llama.cpp", "vllm")
"""Besides transformers."""

MIN_ROUNDS = 3
"""Below, rounds say nothing of the error of their median."""

_OF_QUARTILES = math.sqrt(math.pi / 2) / (2 * statistics.NormalDist().inv_cdf(0.75))
"""Standard error of the median of one normal value, by how far its quartiles lie apart. Unlike a
standard deviation, quartiles do not depend on how late the latest round was.
"""

BLOCKS: Mapping[Unit, tuple[str, str]] = {
    "kv_heads": ("attention", "KV heads"),
    "mlp_channels": ("MLP", "channels"),
}
"""A block in words, and what its size counts."""


@dataclass(frozen=True, slots=True)
class Seconds(Spread):
    """Seconds measured once a round.

    Args:
        standard_error: of the median; None: too few rounds to tell, fewer than `MIN_ROUNDS`.
    """

    standard_error: float | None

    @classmethod
    def of_rounds(cls, values: Sequence[float], speeds: Sequence[float]) -> Self:
        """Of what each round measured.

        Args:
            speeds: how slow the machine was in each round, 1 where it was as usual: what all models
                share is no error.
        """
        ordered = sorted(values)
        error = None
        if len(ordered) >= MIN_ROUNDS:
            steady = [each / speed for each, speed in zip(values, speeds, strict=True)]
            low, _, high = statistics.quantiles(steady, n=4)
            error = _OF_QUARTILES * (high - low) / math.sqrt(len(steady))
        return cls(statistics.median(ordered), ordered[0], ordered[-1], error)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises KeyError or ValueError where something is missing, or no number."""
        found = cls(*(data[each.name] for each in fields(cls)))
        numbers = (found.lowest, found.median, found.highest)
        if not all(isinstance(each, (int, float)) and math.isfinite(each) for each in numbers):
            raise ValueError(f"{numbers} are not three finite numbers")
        error = found.standard_error
        if error is not None and not (isinstance(error, (int, float)) and 0 <= error < math.inf):
            raise ValueError(f"standard_error is {error}, which no standard error is")
        return found


@dataclass(frozen=True, slots=True)
class PhaseTimes:
    """Seconds of a whole batch: of the prefill, and of the decoding of all its new tokens."""

    prefill: Seconds
    decode: Seconds

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(*(Seconds.from_json(data[phase]) for phase in PHASES))


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """What the parts of one model take.

    A model takes `rest` and its blocks together. Differences of measurements: noise may bring those
    of small blocks below 0.

    Args:
        rest: embedding, final norm, head, and what a forward does once.
        kv_heads: of one attention, by its KV heads.
        mlp_channels: of one MLP, by its channels.
    """

    rest: PhaseTimes
    kv_heads: Mapping[int, PhaseTimes]
    mlp_channels: Mapping[int, PhaseTimes]

    def of(self, unit: Unit) -> Mapping[int, PhaseTimes]:
        """Times of one block by its size."""
        return self.kv_heads if unit == "kv_heads" else self.mlp_channels


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Times of the blocks of one model, and what they hold for.

    Args:
        model: its name.
        fingerprint: of its checkpoint.
        dtype: that it was computed in.
        arithmetic: device, threads, versions and attention implementation, as
            `pruning.scoring.arithmetic.Arithmetic` has them.
        settings: batch, prompt and new tokens that the times are of.
        depth: blocks that were measured in one chain.
        engine: that ran them: transformers, llama.cpp or vllm.
        whole_models: by the text of its shape, what a whole model took in the same rounds, for what
            the predictions are worth; none were run with transformers.
    """

    model: str
    fingerprint: str
    dtype: str
    arithmetic: Mapping[str, Any]
    settings: SpeedSettings
    depth: int
    times: BlockTimes
    engine: str = TRANSFORMERS
    whole_models: Mapping[str, PhaseTimes] = field(default_factory=dict)
    _known: dict[tuple[Unit, int, Phase], int] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Of blocks that were asked for: a search asks for the same ones thousands of times."""

    def seconds(self, shape: ModelShape, phase: Phase | None = None) -> float:
        """What a model of that shape takes for a batch, predicted; None: both phases.

        Raises:
            InputError: see `block_nanoseconds`.
        """
        return self.nanoseconds(shape, phase) / 1e9

    def nanoseconds(self, shape: ModelShape, phase: Phase | None = None) -> int:
        """The same as a sum of whole numbers, so that it is exactly the sum over blocks."""
        if phase is None:
            return sum(self.nanoseconds(shape, each) for each in PHASES)
        return _nanoseconds(self.times.rest, phase) + sum(
            self.block_nanoseconds(unit, getattr(layer, unit), phase)
            for layer in shape.layers
            for unit in UNITS
        )

    def block_nanoseconds(self, unit: Unit, size: int, phase: Phase) -> int:
        """Of one block: as measured, or between the two measured sizes around, in proportion.

        Raises:
            InputError: the size is smaller or larger than all that were measured.
        """
        found = self._known.get((unit, size, phase))
        if found is None:
            found = self._known[unit, size, phase] = self._looked_up(unit, size, phase)
        return found

    def _looked_up(self, unit: Unit, size: int, phase: Phase) -> int:
        times = self.times.of(unit)
        sizes = sorted(times)
        if not self.reaches(unit, size):
            name, counted = BLOCKS[unit]
            raise InputError(
                f"latency: {name} of {size} {counted}; the table has {sizes[0]} to {sizes[-1]}; "
                "measure one that goes so far"
            )
        parts = self._parts(unit, size)
        return round(sum(share * _nanoseconds(times[each], phase) for each, share in parts.items()))

    def ratio_error(self, shape: ModelShape, dense: ModelShape, phase: Phase) -> float | None:
        """Standard error of what is predicted of one shape / of another, by those of the medians.
        Blocks of one size have one time, so that its error counts for all; None: not known.
        """
        whole = self.nanoseconds(dense, phase)
        ratio = self.nanoseconds(shape, phase) / whole
        counts = [(1 - ratio, self.times.rest)]
        for unit in UNITS:
            share: defaultdict[int, float] = defaultdict(float)
            for one, factor in ((shape, 1.0), (dense, -ratio)):
                for layer in one.layers:
                    for size, part in self._parts(unit, getattr(layer, unit)).items():
                        share[size] += factor * part
            counts += [(count, self.times.of(unit)[size]) for size, count in share.items()]
        errors = [(count, getattr(times, phase).standard_error) for count, times in counts]
        if any(error is None for _, error in errors):
            return None
        return 1e9 * math.hypot(*(count * error for count, error in errors)) / whole

    def _parts(self, unit: Unit, size: int) -> dict[int, float]:
        """The measured sizes that a size is between, with the share of each."""
        sizes = sorted(self.times.of(unit))
        above = sizes[bisect_left(sizes, size)]
        if above == size:
            return {size: 1.0}
        below = sizes[bisect_left(sizes, size) - 1]
        share = (size - below) / (above - below)
        return {below: 1 - share, above: share}

    def reaches(self, unit: Unit, size: int) -> bool:
        """Whether a size is among those that were measured, or between two of them."""
        return min(self.times.of(unit)) <= size <= max(self.times.of(unit))

    def costs_speed(self, unit: Unit, phase: Phase) -> frozenset[int]:
        """The measured sizes that are not faster than the next larger one, by their medians."""
        sizes = sorted(self.times.of(unit))
        taken = {size: self.block_nanoseconds(unit, size, phase) for size in sizes}
        return frozenset(size for size, larger in pairwise(sizes) if taken[size] >= taken[larger])

    def error(self, shape: ModelShape, phase: Phase) -> float:
        """Predicted / measured - 1 of one of `whole_models`."""
        measured: Seconds = getattr(self.whole_models[shape.text], phase)
        return self.seconds(shape, phase) / measured.median - 1

    @property
    def title(self) -> str:
        """What it is of, in words."""
        settings = self.settings
        engine = "" if self.engine == TRANSFORMERS else f"{self.engine}, "
        return (
            f"{self.model} on {self.arithmetic.get('device', '?')}, {engine}{self.dtype}, "
            f"{settings.batch_size} x ({settings.prompt_tokens} + {settings.new_tokens}) tokens"
        )

    @property
    def noise(self) -> float | None:
        """How well the medians are known: their standard error, in parts of what the whole block
        takes; the median over all sizes but 0, the worse of the two phases. Infinite where a whole
        block takes no time by the medians; None: too few rounds to tell.
        """
        found = [self._noise(phase) for phase in PHASES]
        known = [each for each in found if each is not None]
        return max(known) if len(known) == len(found) else None

    def _noise(self, phase: Phase) -> float | None:
        found = []
        for unit in UNITS:
            times = self.times.of(unit)
            whole = getattr(times[max(times)], phase).median
            for size, each in times.items():
                error = getattr(each, phase).standard_error
                if error is None:
                    return None
                if size:
                    found.append(error / whole if whole > 0 else math.inf)
        return statistics.median(found)

    def to_json(self) -> dict[str, Any]:
        """As `latency.json` has it."""
        return {
            "model": self.model,
            "engine": self.engine,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "arithmetic": dict(self.arithmetic),
            "settings": asdict(self.settings),
            "depth": self.depth,
            "rest": asdict(self.times.rest),
            **{
                unit: [
                    {
                        "size": size,
                        **asdict(times),
                        "costs_speed": [
                            phase for phase in PHASES if size in self.costs_speed(unit, phase)
                        ],
                    }
                    for size, times in sorted(self.times.of(unit).items())
                ]
                for unit in UNITS
            },
            "whole_models": [
                {
                    "shape": text,
                    **asdict(times),
                    "predicted_seconds": {
                        phase: self.seconds(ModelShape.parse(text), phase) for phase in PHASES
                    },
                }
                for text, times in self.whole_models.items()
            ],
        }

    def save(self, path: Path) -> None:
        path.write_text(dump_json(self.to_json()), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """The inverse of `save`.

        Raises:
            InputError: the shape of a whole model is none.
            OSError: it cannot be read.
            KeyError, TypeError, ValueError: it is no table of latencies; the message says why.
        """
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise TypeError("it is no table of latencies")
        by_size: dict[str, dict[int, PhaseTimes]] = {}
        for unit in UNITS:
            by_size[unit] = {each["size"]: PhaseTimes.from_json(each) for each in data[unit]}
            if not by_size[unit] or not all(type(size) is int for size in by_size[unit]):
                raise ValueError(f"{unit} has no size, or one that is no whole number")
        engine = data.get("engine", TRANSFORMERS)  # earlier versions had no other
        if engine not in (TRANSFORMERS, *ENGINES):
            raise ValueError(f"engine is {engine!r}, which is not known")
        wholes = {
            ModelShape.parse(each["shape"]).text: PhaseTimes.from_json(each)
            for each in data.get("whole_models", ())
        }
        return cls(
            str(data["model"]),
            str(data["fingerprint"]),
            str(data["dtype"]),
            dict(data["arithmetic"]),
            SpeedSettings(**data["settings"]),
            data["depth"],
            BlockTimes(PhaseTimes.from_json(data["rest"]), **by_size),
            engine,
            wholes,
        )


def warn_of_noise(table: LatencyTable) -> None:
    """Says so where the sizes of a table can hardly be told apart."""
    noise = table.noise
    if noise is None:
        log.warning(
            "latency: rounds are %d, too few to tell what is noise; measure again with at least %d",
            table.settings.rounds,
            MIN_ROUNDS,
        )
    elif noise > _NOISY:
        log.warning(
            "latency: the standard error of the medians is %s, so that sizes can hardly be told "
            "from one another; measure again on a quiet machine, with more rounds or a longer "
            "prompt",
            f"{noise:.0%} of a whole block's time"
            if math.isfinite(noise)
            else "more than a whole block takes",
        )


def latency_costs(table: LatencyTable, dense: ModelShape) -> dict[CostName, Cost]:
    """Nanoseconds of a batch as costs: of prefill and decoding together, and of each. One by which
    the dense model takes no time is left out: noise, of which nothing can be saved.

    Raises:
        InputError: a size of the dense model is not in the table.
    """
    phases: dict[CostName, Phase | None] = {
        "latency": None,
        "prefill": "prefill",
        "decode": "decode",
    }
    wholes = {name: table.nanoseconds(dense, phase) for name, phase in phases.items()}
    return {
        name: Cost(name, partial(table.nanoseconds, phase=phase), wholes[name])
        for name, phase in phases.items()
        if wholes[name] > 0
    }


def _nanoseconds(times: PhaseTimes, phase: Phase) -> int:
    seconds: Seconds = getattr(times, phase)
    return round(1e9 * seconds.median)
