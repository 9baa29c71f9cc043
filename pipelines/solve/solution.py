"""One solution: from the folder of an allocation to that of another shape."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.config.groups import chosen
from pipelines.config.solve import SolveConfig
from pipelines.config.target import Asked, MemoryConfig
from pipelines.runs.files import ALLOCATION, CHANNEL_ORDER, SHAPE, SOLUTION, read_with
from pipelines.runs.folder import RunFolder
from pipelines.runs.provenance import git_revision, versions
from pipelines.runs.saved_run import SavedRun, read_saved_run
from pipelines.runs.targets import targets_of
from pipelines.runs.timing import Timing
from pruning.canonical_json import dump_json
from pruning.costs.accounting import Accounting
from pruning.costs.known_sizes import sizes_of
from pruning.costs.latency import latency_costs
from pruning.costs.memory import MemoryLoad
from pruning.costs.target import COUNTED, Cost, CostName, costs_of
from pruning.errors import InputError
from pruning.importance.channel_order import STATISTICS, ChannelOrder
from pruning.search.allocation import Limit, Solution
from pruning.search.allocation_result import Allocation
from pruning.search.constraints import (
    Constraint,
    of_shape_constraint,
    solve_within,
    whole_attention,
    whole_blocks,
    width_multiple,
)
from pruning.search.prediction import MeasuredRound, Prediction, predict
from pruning.search.settings import SHAPE_CONSTRAINTS
from pruning.shape import ModelShape


@dataclass(frozen=True, slots=True)
class SolvedRun:
    """An allocation whose table is solved again.

    Args:
        rounds: what it measured, in order.
        fingerprint: of `allocation.json`, 32 hexadecimal digits.
        costs: those that are known of its model.
        load: that memory is counted at.
        timing: the table of latencies that some of them are by; None: there is none.
    """

    saved: SavedRun
    accounting: Accounting
    costs: Mapping[CostName, Cost]
    rounds: tuple[MeasuredRound, ...]
    fingerprint: str
    load: MemoryLoad
    timing: Timing | None = None

    @property
    def counted_costs(self) -> list[Cost]:
        """How much a predicted KL is worth depends on no device and no load."""
        return [cost for name, cost in self.costs.items() if name in COUNTED]

    @classmethod
    def read(cls, folder: str, memory: MemoryConfig, latency: str | None = None) -> SolvedRun:
        """Reads its folder, and the configuration of its model: no weights.

        Args:
            memory: what memory is counted at.
            latency: file of a table of latencies of its model.

        Raises:
            InputError: it is not the folder of an allocation, something in it is missing or
                damaged, its model is not where it was, or the table is of another model.
        """
        saved = read_saved_run(folder, needs=(CHANNEL_ORDER,))
        if not (saved.folder / ALLOCATION).exists():
            raise InputError(
                f"run: {saved.folder} has no {ALLOCATION}, so that no table was measured; give the "
                "output_dir of a search with search=allocation"
            )
        order = read_with(ChannelOrder.load, saved.folder / CHANNEL_ORDER, option="run")
        if order.compensation is not None and not (saved.folder / STATISTICS).exists():
            raise InputError(
                f"run: {saved.folder} has no {STATISTICS}, with which its model is compensated; "
                "restore it"
            )
        path = saved.folder / ALLOCATION
        rounds = read_with(_rounds, path, option="run")
        model = saved.config.model
        accounting = Accounting(
            sizes_of(model.path, revision=model.revision, trust_remote_code=model.trust_remote_code)
        )
        problems = accounting.geometry.problems(rounds[-1].table.base)
        if problems:
            raise InputError(
                f"run: {model.path} is not the model that the search in {saved.folder} pruned: "
                f"its shape has {problems[0].removeprefix('it has ')}"
            )
        length = int(saved.config.calibration.sequence_length)
        load = memory.load(length)
        costs = costs_of(accounting, context_length=length, load=load)
        fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        if latency is None:
            return cls(saved, accounting, costs, rounds, fingerprint, load)
        timing, whose = Timing.read(latency), f"the run in {saved.folder}"
        timing.require_model(saved.fingerprint, f"{whose} pruned {saved.model_name}")
        timing.require_sizes({shape for each in rounds for shape in each.measured}, whose)
        costs = {**costs, **latency_costs(timing.table, accounting.dense)}
        return cls(saved, accounting, costs, rounds, fingerprint, load, timing)


@dataclass(frozen=True, slots=True)
class Solved:
    """A shape for some targets, and what the table says of it."""

    run: SolvedRun
    targets: Asked
    constraints: tuple[str, ...]
    shape: ModelShape
    found: MeasuredRound
    prediction: Prediction

    @property
    def _asks_for_memory(self) -> bool:
        return any(cost == "memory" for cost, _ in self.targets.values())

    def identity(self) -> dict[str, Any]:
        """What decides the shape."""
        return {
            "kind": "solution",
            "allocation": self.run.fingerprint,
            **({"latency": self.run.timing.fingerprint} if self.run.timing else {}),
            **{name: given for name, (_, given) in self.targets.items()},
            **({"memory": asdict(self.run.load)} if self._asks_for_memory else {}),
            "constraints": list(self.constraints),
        }

    def to_json(self) -> dict[str, Any]:
        """As `solution.json` has it."""
        run, prediction = self.run, self.prediction
        return {
            "run": str(run.saved.folder),
            "allocation": run.fingerprint,
            "model": run.saved.model_name,
            "fingerprint": run.saved.fingerprint,
            "targets": {name: given for name, (_, given) in self.targets.items()},
            "constraints": list(self.constraints),
            "shape": self.shape.text,
            "costs": {name: cost.to_json(self.shape) for name, cost in run.costs.items()},
            **({"latency": run.timing.to_json(self.shape)} if run.timing else {}),
            "memory": run.load.to_json(run.accounting, self.shape),
            "kl": {
                prediction.kind: prediction.score
                if prediction.measured is None
                else prediction.measured,
                "why": list(prediction.reasons),
                "round": self.found.number,
                "base": self.found.table.base.text,
                "base_kl": self.found.base_score,
                "num_changed": prediction.num_changed,
                "distance": dict(prediction.distance),
                "measured_range": {
                    name: list(ends) for name, ends in prediction.measured_range.items()
                },
                "errors": list(prediction.errors),
            },
            "versions": versions(),
            "git_revision": git_revision(),
        }

    def write(self, folder: RunFolder) -> None:
        """The shape, the order that it counts in with the statistics that compensate, and what is
        known of it.

        Raises:
            InputError: the folder belongs to something else.
        """
        folder.claim(self.identity())
        for name in (STATISTICS, CHANNEL_ORDER):
            source = self.run.saved.folder / name
            if source.exists():
                folder.link(name, source)
        folder.write(SHAPE, dump_json(self.shape.to_json()))
        folder.write(SOLUTION, dump_json(self.to_json()))


def solved(run: SolvedRun, config: SolveConfig) -> Solved:
    """The best shape for the targets by the last round whose table reaches them.

    Raises:
        InputError: none does, or a cost is not known of this model.
    """
    targets = targets_of(config.targets, run.costs, run.timing, model=run.saved.model_name)
    limits = [Limit.of_target(target) for target in targets]
    constraints = _constraints(run, config)
    problems: list[str] = []
    for found in reversed(run.rounds):
        try:
            solution = solve_within(found.table, limits, constraints)
        except InputError as error:
            problems += [
                f"{line} (table of round {found.number})" for line in str(error).splitlines()
            ]
            continue
        best = _best(found, solution, limits, constraints)
        return Solved(
            run,
            config.targets,
            tuple(each.name for each in constraints),
            best.shape,
            found,
            predict(found, best, run.counted_costs),
        )
    raise InputError("\n".join(problems))


def _best(
    found: MeasuredRound,
    solution: Solution,
    limits: Sequence[Limit],
    constraints: Sequence[Constraint],
) -> Solution:
    """The solution of a table, or a shape that measured better than the table's sum says of it."""
    measured = {
        shape: score - found.base_score
        for shape, score in found.measured.items()
        if all(limit.is_kept(limit.cost(shape)) for limit in limits)
        and all(constraint.is_kept(shape) for constraint in constraints)
    }
    least = min(measured, key=measured.__getitem__, default=solution.shape)
    change = measured.get(solution.shape, solution.predicted)
    if measured.get(least, math.inf) < change:
        return Solution(least, measured[least])
    return solution


def _rounds(path: Path) -> tuple[MeasuredRound, ...]:
    """Those of an `allocation.json`."""
    allocation = Allocation.load(path)
    found = tuple(
        MeasuredRound.of(number, each) for number, each in enumerate(allocation.rounds, start=1)
    )
    if not found or not all(each.measured for each in found):
        raise ValueError("it has no round, or one without a finite score")
    return (replace(found[0], others={allocation.start: allocation.start_score}), *found[1:])


def _constraints(run: SolvedRun, config: SolveConfig) -> list[Constraint]:
    search, dense = config.search, run.accounting.dense
    name = chosen(
        search.shape_constraint or run.saved.config.search.shape_constraint, SHAPE_CONSTRAINTS
    )
    found = of_shape_constraint(name, len(dense.layers))
    if search.width_multiple is not None:
        found.append(width_multiple(search.width_multiple))
    if search.whole_attention:
        found.append(whole_attention(dense))
    if search.whole_blocks:
        found.append(whole_blocks(dense))
    return found
