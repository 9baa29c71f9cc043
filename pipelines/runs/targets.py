"""From what a configuration asks for to costs that a model has."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.config.prune import PruneConfig
from pipelines.config.target import Asked
from pipelines.runs.timing import Timing
from pruning.costs.accounting import Accounting
from pruning.costs.latency import latency_costs
from pruning.costs.memory import shown_bytes
from pruning.costs.target import TIMED, Cost, CostName, Target, costs_of
from pruning.errors import InputError
from pruning.models.display_name import display_name
from pruning.search.settings import SearchSettings


def targets_of(
    asked: Asked, costs: Mapping[CostName, Cost], timing: Timing | None, *, model: str
) -> list[Target]:
    """Every target with its cost.

    Args:
        costs: those that are known of the model.
        timing: the table of latencies that some of them are by.
        model: its name.

    Raises:
        InputError: a cost is not known.
    """
    problems = [
        f"{name}: {ratio}, but by {timing.path} the dense model takes no time for it; "
        "measure it again, with more rounds"
        if cost in TIMED and timing
        else f"{name}: {ratio}, but this cost is not known of {model}"
        for name, (cost, ratio) in asked.items()
        if cost not in costs
    ]
    targets = [
        Target(name, costs[cost], given) for name, (cost, given) in asked.items() if cost in costs
    ]
    problems += [
        f"{each.name}: {each.given}; the dense model takes {shown_bytes(each.cost.dense)}, so that "
        "nothing has to go"
        for each in targets
        if each.most >= each.cost.dense
    ]
    if problems:
        raise InputError("\n".join(problems))
    return targets


def search_settings(
    config: PruneConfig, accounting: Accounting, timing: Timing | None = None
) -> SearchSettings:
    """What a search is asked for, with everything resolved.

    Raises:
        InputError: a cost is not known of the model.
    """
    others = {name: each for name, each in config.search.asked.items() if each[0] != "parameters"}
    length = config.calibration.sequence_length
    costs = dict(costs_of(accounting, context_length=length, load=config.memory.load(length)))
    if timing is not None:
        costs |= latency_costs(timing.table, accounting.dense)
    model = display_name(config.model.path)
    return config.search.resolved(
        accounting.geometry, targets_of(others, costs, timing, model=model)
    )
