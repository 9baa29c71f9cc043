"""What a strategy is: the object that decides how a search goes, and all that is said of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypedDict

from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.search.allocation import Limit
from pruning.search.goal import Goal, limits_of
from pruning.search.plan import SearchPlan
from pruning.search.selection import Selection
from pruning.search.settings import SearchSettings, ShapeConstraint, StrategyName
from pruning.search.stages import Stage, stage_problems
from pruning.search.step import Step
from pruning.shape import ModelShape, Removal

if TYPE_CHECKING:
    from pruning.importance.block_influence import BlockInfluence
    from pruning.search.allocation_result import Allocation

Need = Literal["influence", "allocation"]


class Measured(TypedDict, total=False):
    """What was measured of the dense model before the first step, by what the strategy needs."""

    influence: BlockInfluence
    allocation: Allocation


class Search(Protocol):
    """Proposes and observes, and never evaluates: it holds no model and no clock, so that
    replaying the same scores rebuilds the same search.
    """

    steps: list[Step]

    @property
    def shape(self) -> ModelShape: ...

    @property
    def ratio(self) -> float: ...

    @property
    def stage(self) -> Stage | None: ...

    @property
    def done(self) -> bool: ...

    def propose(self) -> tuple[Removal, ...]: ...

    def foreseen(self) -> tuple[Removal, ...]:
        """What goes next, step by step, whatever the scores will be; empty where they decide."""

    def selection(self, num_batches: int) -> Selection: ...

    def decides(self, scores: Mapping[Removal | None, float]) -> bool: ...

    def observe(self, scores: Mapping[Removal | None, float]) -> Step: ...

    def expected_evaluations(self) -> int: ...


@dataclass(frozen=True)
class Strategy(ABC):
    """One way to decide the next removal, with the settings of one search.

    A strategy is a subclass and its entry in `pruning.search.strategies`.
    """

    settings: SearchSettings

    name: ClassVar[StrategyName]
    method: ClassVar[str]
    """What it does, for a model card: "What went was chosen by ..."."""
    needs: ClassVar[tuple[Need, ...]] = ()
    """What `search` must be given; besides the channel order, which every search has."""
    options: ClassVar[tuple[str, ...]] = ()
    """Settings that have an effect with this strategy and not with every other one."""
    blocks_only: ClassVar[bool] = False
    """Whether it can remove whole blocks alone: a distribution of [1, 0, 0]."""
    channels_only: ClassVar[bool] = False
    """Whether it narrows MLPs alone: a distribution of [0, 1, 0]."""
    constraints: ClassVar[tuple[ShapeConstraint, ...]] = ("none", "deployable")
    """Values of `shape_constraint` that it can keep."""
    solves_shares: ClassVar[bool] = False
    """Whether it decides how much each kind of block loses: a distribution of 0 and 1 says which
    kinds may lose at all, [0, 1, 1] or [0, 1, 0].
    """
    whole_layers: ClassVar[bool] = False
    """Whether the two blocks of a layer go together."""
    by_divergence: ClassVar[bool] = False
    """Whether shapes are scored by KL from the dense model, too."""
    is_control: ClassVar[bool] = False
    """Whether it looks at no score of the model, and is there to be beaten."""
    any_cost: ClassVar[bool] = False
    """Whether it takes targets in other costs than parameters."""
    compares_candidates: ClassVar[bool] = False
    """Whether a step scores several candidates and commits the best."""

    @property
    def label(self) -> str:
        """What tells runs of one model and target apart, such as `random 42`."""
        options = self._options()
        return f"{self.name} {options['seed']}" if "seed" in options else self.name

    def identity(self) -> dict[str, Any]:
        """The settings that decide the trajectory, by the names of the options.

        Two searches that agree on them, and on the bytes of model and calibration, take the same
        steps. What changes nothing is left out, as in folders from before there was a choice.
        """
        settings = self.settings
        targets: dict[str, Any] = {target.name: target.given for target in settings.targets}
        if settings.target_ratio:
            targets["search.target_ratio"] = settings.target_ratio
        identity: dict[str, Any] = targets | {
            "search.distribution": list(settings.distribution),
            "search.importance": settings.importance,
            "search.mlp_group_channels": settings.mlp_group_channels,
            "search.head_group_channels": settings.head_group_channels,
        }
        if settings.shape_constraint == "deployable":
            identity["search.layout"] = "portable"  # its names in folders of version 0.1.0
        elif settings.shape_constraint != "none":
            identity["search.shape_constraint"] = settings.shape_constraint
        if settings.compensation != "none":
            identity["search.compensation"] = settings.compensation
        return identity | self._own_identity()

    def limits(self, accounting: Accounting) -> list[Limit]:
        """What the shape that is looked for may cost."""
        return limits_of(accounting, self.settings)

    def problems(self, accounting: Accounting) -> list[str]:
        """What is wrong with the settings for this model, one message each."""
        found = stage_problems(accounting, self.settings)
        if not found:
            try:
                self.first_shapes(accounting)
            except InputError as error:
                return str(error).splitlines()
        return found

    def first_shapes(self, accounting: Accounting) -> Collection[ModelShape]:
        """Shapes that it is known to come to, before anything is scored.

        Raises:
            InputError: the targets are out of reach.
        """
        stage = self.planned(accounting).impossible
        if stage is not None:
            raise InputError(
                f"{Goal.of(accounting, self.settings).words}; no path reaches it: the "
                f"{stage} stage runs out of candidates; lower it, give that stage a smaller share "
                "in search.distribution, or use smaller groups"
            )
        return (accounting.dense,)

    @abstractmethod
    def search(self, accounting: Accounting, measured: Measured) -> Search:
        """A search before its first step.

        Args:
            measured: all that `needs` names.

        Raises:
            InputError: the settings do not fit the model.
        """

    @abstractmethod
    def planned(self, accounting: Accounting) -> SearchPlan:
        """Steps and evaluations of every way that the search can go.

        Raises:
            InputError: the settings do not fit the model.
        """

    def _own_identity(self) -> dict[str, Any]:
        options = {f"search.{name}": value for name, value in self._options().items()}
        return {"search.strategy": self.name} | options

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self.settings, name) for name in self.options}
