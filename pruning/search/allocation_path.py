"""`search=allocation`: sizes of all blocks by measurement and an integer program
(`pruning.search.rounds`), then a path from the dense model to the shape that came of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.search.allocation import Limit, lowest_cost, solve
from pruning.search.allocation_result import Allocation
from pruning.search.fixed import PARTS, PathSearch, path_between
from pruning.search.plan import Range, SearchPlan, StagePlan
from pruning.search.rounds import MOVES, AllocationSearch
from pruning.search.settings import SearchSettings
from pruning.search.stages import StageName, make_stages
from pruning.search.strategy import Measured, Strategy
from pruning.search.uniform import uniform_shape
from pruning.shape import ModelShape


class AllocationStrategy(Strategy):
    """Every block is measured at a few sizes around the uniform shape, and an integer program
    chooses among them: which units may shrink is said by the distribution, how much by the solver.
    """

    name = "allocation"
    method = (
        "an integer program over what each block costs at each size, measured as the KL divergence "
        "from the dense model"
    )
    options = ("rounds", "table_ratio")
    needs = ("allocation",)
    solves_shares = True
    by_divergence = True
    any_cost = True

    def measuring(self, accounting: Accounting) -> AllocationSearch:
        """The rounds, before the first.

        Raises:
            InputError: the settings do not fit the model, or the target is out of reach of MLPs
                alone, or of the table.
        """
        settings = self.settings
        heads = make_stages(accounting, settings)[2].group if settings.distribution[2] else 0
        limits, table = self.limits(accounting), settings.table_ratio
        uniform = self._uniform(accounting, limits, heads if settings.targets else 0)
        search = AllocationSearch(
            accounting.dense,
            uniform
            if table is None
            else self._uniform(accounting, [Limit.of_parameters(accounting, table)]),
            limits,
            group=settings.mlp_group_channels,
            heads=heads,
            constraint=settings.shape_constraint,
            max_rounds=settings.rounds,
            uniform=None if table is None else uniform,
        )
        if table is not None:
            _require_reach(search, limits, table)
        return search

    def search(self, accounting: Accounting, measured: Measured) -> AllocationPath:
        return AllocationPath(accounting, self.settings, measured["allocation"])

    def first_shapes(self, accounting: Accounting) -> Collection[ModelShape]:
        wave = self.measuring(accounting).propose()
        return (accounting.dense, *(wave.shapes if wave else ()))

    def planned(self, accounting: Accounting) -> SearchPlan:
        """What is measured counts as evaluations of the block stage, whose text it is measured on:
        the first table, and in a later round at most four sizes of each MLP and two of each
        attention.

        The ratio is from the target to that of the uniform shape, with which the solver starts:
        it is expected to end between them, but may remove more where that measures better.
        """
        search, target = self.measuring(accounting), self.settings.target_ratio
        wave, num_layers = search.propose(), accounting.geometry.num_layers
        assert wave is not None
        kinds = 2 if search.heads else 1
        later = (4 + 2 * (kinds - 1)) * num_layers + len(MOVES)
        most = len(wave.shapes) + len(MOVES) + (self.settings.rounds - 1) * later
        most += search.reference != search.shape
        reference = accounting.ratio(search.reference)
        ends = (target or reference, reference)  # of other costs, parameters come as they may
        # A round takes one group of an attention at most.
        parts = (PARTS, min(PARTS, self.settings.rounds))
        names: tuple[StageName, ...] = ("mlp_channels", "attention_heads")
        return SearchPlan(
            (
                StagePlan("block", 0.0, Range(0, 0), Range(len(wave.shapes), most), (0.0, 0.0)),
                *(
                    StagePlan(name, target, steps, steps, ends, "block")
                    for name, each in list(zip(names, parts, strict=True))[:kinds]
                    for steps in [Range(0, each * num_layers)]
                ),
            ),
            dead_ends=False,
            impossible=None,
        )

    def _own_identity(self) -> dict[str, Any]:
        return {name: value for name, value in super()._own_identity().items() if value is not None}

    def _uniform(
        self, accounting: Accounting, limits: Sequence[Limit], heads: int = 0
    ) -> ModelShape:
        """As near to the limits as half a group comes."""
        settings, group = self.settings, self.settings.mlp_group_channels
        fine = group if settings.shape_constraint == "deployable" else max(1, group // 2)
        return uniform_shape(accounting, limits, group=fine, heads=heads)


def _require_reach(search: AllocationSearch, limits: Sequence[Limit], ratio: float) -> None:
    """Whether a table around another shape than that of the targets reaches them.

    Raises:
        InputError: it does not.
    """
    sizes = search.sizes()
    around = f"search.table_ratio: {ratio:g}; what is measured around the uniform shape of that"
    remedy = "give one that is nearer to it, or leave it out"
    problems = [
        f"{around} ratio goes to {limit.as_given(reached)}, and {limit.name} is "
        f"{limit.as_given(limit.most)}; {remedy}"
        for limit, reached in [(each, lowest_cost(sizes, each)) for each in limits]
        if not limit.is_kept(reached)
    ]
    if not problems and len(limits) > 1:
        try:
            solve(sizes, limits)
        except InputError:
            names = ", ".join(limit.name for limit in limits)
            problems = [f"{around} ratio does not reach {names} together; {remedy}"]
    if problems:
        raise InputError("\n".join(problems))


class AllocationPath(PathSearch):
    """Goes from the dense model to an allocation, with one candidate a step, which is scored on the
    text that the allocation was measured on, the `block` set.
    """

    def __init__(
        self, accounting: Accounting, settings: SearchSettings, allocation: Allocation
    ) -> None:
        path = path_between(
            accounting.dense,
            allocation.shape,
            channels=settings.mlp_group_channels,
            heads=make_stages(accounting, settings)[2].group,
        )
        super().__init__(accounting, settings, path, scored_on="block")
        self.allocation = allocation
