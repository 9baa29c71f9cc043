"""The same share of every layer's MLP channels, nothing scored: a baseline, and with one width for
all layers a plain checkpoint.
"""

from __future__ import annotations

from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.search.fixed import FixedSearch, path_between
from pruning.search.plan import Range, SearchPlan, StagePlan
from pruning.search.stages import make_stages
from pruning.search.strategy import Measured, Strategy
from pruning.shape import LayerShape, ModelShape, Removal


class UniformStrategy(Strategy):
    """A baseline, and for many users the answer: the same width in nearly every layer, by no score.

    Its trajectory narrows every layer by one group, then every layer by the next.
    """

    name = "uniform"
    method = "one rule for all: nearly every layer keeps the same number of MLP channels"
    channels_only = True
    constraints = ("none", "deployable", "one_width")

    def search(self, accounting: Accounting, measured: Measured) -> FixedSearch:
        make_stages(accounting, self.settings)  # says what does not fit the model
        path = self._path(accounting)
        # One width is there at the end alone, wherever the target is met.
        groups = [path] if self._one_width else [(removal,) for removal in path]
        return FixedSearch(accounting, self.settings, groups)

    def planned(self, accounting: Accounting) -> SearchPlan:
        path = self._path(accounting)
        ratio = accounting.ratio(self._shape(accounting))
        steps = Range(len(path), len(path))
        return SearchPlan(
            tuple(
                StagePlan(stage.name, stage.target_ratio, steps, steps, (ratio, ratio))
                if stage.name == "mlp_channels"
                else StagePlan(stage.name, stage.target_ratio, Range(0, 0), Range(0, 0), (0.0, 0.0))
                for stage in make_stages(accounting, self.settings)
            ),
            dead_ends=False,
            impossible=None,
        )

    def _shape(self, accounting: Accounting) -> ModelShape:
        settings, one_width = self.settings, self._one_width
        return uniform_shape(
            accounting,
            target_ratio=settings.target_ratio,
            group=settings.mlp_group_channels,
            whole_ends=not one_width,
            one_width=one_width,
        )

    def _path(self, accounting: Accounting) -> tuple[Removal, ...]:
        dense, shape = accounting.dense, self._shape(accounting)
        if self._one_width:
            return path_between(dense, shape, channels=self.settings.mlp_group_channels)
        return uniform_path(dense, shape, self.settings.mlp_group_channels)

    @property
    def _one_width(self) -> bool:
        return self.settings.shape_constraint == "one_width"


def uniform_shape(
    accounting: Accounting,
    *,
    target_ratio: float,
    group: int,
    whole_ends: bool = True,
    one_width: bool = False,
) -> ModelShape:
    """The most even shape whose ratio is at least the target.

    All widths are `group` channels below the dense one, or a multiple of that; where one step for
    all overshoots, evenly spaced layers keep one group more.

    Args:
        target_ratio: removed / all parameters, above 0 and below 1.
        group: MLP channels that go at a time.
        whole_ends: leave the first and the last layer whole, which matter most.
        one_width: no layer keeps a group more than another.

    Raises:
        InputError: the MLPs do not hold that much.
    """
    num_layers, channels = accounting.geometry.num_layers, accounting.geometry.mlp_channels
    whole = (0, num_layers - 1) if whole_ends and num_layers > 2 else ()
    narrowed = [layer for layer in range(num_layers) if layer not in whole]
    for width in range(channels - group, 0, -group):
        shape = _with_widths(accounting, dict.fromkeys(narrowed, width))
        if accounting.ratio(shape) >= target_ratio:
            return shape if one_width else _evened(accounting, narrowed, width, group, target_ratio)
    lowest = channels % group or group
    most = accounting.ratio(_with_widths(accounting, dict.fromkeys(narrowed, lowest)))
    raise InputError(
        f"search.target_ratio: {target_ratio:g}; MLPs of {lowest} channels in "
        f"{len(narrowed)} of {num_layers} layers come to {most:.4f}, with attention whole; lower "
        "the target, or use smaller groups"
    )


def uniform_path(dense: ModelShape, shape: ModelShape, group: int) -> tuple[Removal, ...]:
    """From a dense model to a uniform shape: a group of channels from every layer that has more
    than it may keep, lowest layer first, and again.
    """
    removals: list[Removal] = []
    widths = [layer.mlp_channels for layer in dense.layers]
    wanted = [layer.mlp_channels for layer in shape.layers]
    while widths != wanted:
        for index, most in enumerate(wanted):
            if widths[index] > most:
                widths[index] -= group
                removals.append(Removal("mlp_channels", index, widths[index]))
    return tuple(removals)


def _evened(
    accounting: Accounting, narrowed: list[int], width: int, group: int, target_ratio: float
) -> ModelShape:
    """As many evenly spaced layers as the target allows keep one group more."""
    for count in range(len(narrowed), 0, -1):
        spaced = [narrowed[position * len(narrowed) // count] for position in range(count)]
        widths = dict.fromkeys(narrowed, width) | dict.fromkeys(spaced, width + group)
        shape = _with_widths(accounting, widths)
        if accounting.ratio(shape) >= target_ratio:
            return shape
    return _with_widths(accounting, dict.fromkeys(narrowed, width))


def _with_widths(accounting: Accounting, widths: dict[int, int]) -> ModelShape:
    return ModelShape(
        tuple(
            LayerShape(layer.kv_heads, widths.get(index, layer.mlp_channels))
            for index, layer in enumerate(accounting.dense.layers)
        )
    )
