"""The same share of every layer's MLP channels, nothing scored: a baseline, and with one width for
all layers a plain checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.search.allocation import Limit, resized, size_of
from pruning.search.fixed import PathSearch, path_between
from pruning.search.plan import Range, SearchPlan, StagePlan
from pruning.search.stages import make_stages
from pruning.search.strategy import Measured, Strategy
from pruning.shape import ModelShape, Removal, Unit


class UniformStrategy(Strategy):
    """A baseline, and for many users the answer: the same width in nearly every layer, by no score.

    Its trajectory narrows every layer by one group, then every layer by the next.
    """

    name = "uniform"
    method = "one rule for all: nearly every layer keeps the same number of MLP channels"
    channels_only = True
    is_control = True
    constraints = ("none", "deployable", "one_width")
    any_cost = True

    def search(self, accounting: Accounting, measured: Measured) -> PathSearch:
        make_stages(accounting, self.settings)  # says what does not fit the model
        return PathSearch(accounting, self.settings, self._path(accounting))

    def first_shapes(self, accounting: Accounting) -> Collection[ModelShape]:
        return (accounting.dense, self._shape(accounting))

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
            self.limits(accounting),
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
    limits: Sequence[Limit],
    *,
    group: int,
    heads: int = 0,
    whole_ends: bool = True,
    one_width: bool = False,
) -> ModelShape:
    """The most even shape that keeps every limit.

    All widths are `group` channels below the dense one, or a multiple of that; where one step for
    all overshoots, evenly spaced layers keep one group more. Attention stays whole as long as MLPs
    of half their width or more keep the limits; then it loses KV heads as evenly.

    Args:
        group: MLP channels that go at a time.
        heads: KV heads that go at a time; 0 leaves attention whole, whatever becomes of MLPs.
        whole_ends: leave the first and the last layer whole, which matter most.
        one_width: no layer keeps a group more than another.

    Raises:
        InputError: what can be narrowed does not cost that much.
    """
    dense, num_layers = accounting.dense, accounting.geometry.num_layers
    channels = accounting.geometry.mlp_channels
    ends = (0, num_layers - 1) if whole_ends and num_layers > 2 else ()
    layers = [layer for layer in range(num_layers) if layer not in ends]
    attentions = _evened(dense, "kv_heads", layers, heads) if heads else [dense]
    for least in (channels // 2, 1) if heads else (1,):
        for attention in attentions:
            for width in range(channels, least - 1, -group):
                shape = _with_sizes(attention, "mlp_channels", dict.fromkeys(layers, width))
                if not _keeps(shape, limits):
                    continue
                if one_width or width == channels:
                    return shape
                return next(
                    each
                    for each in _between(attention, "mlp_channels", layers, width, group)
                    if _keeps(each, limits)
                )
    raise InputError("\n".join(_out_of_reach(accounting, limits, attentions[-1], layers, group)))


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


def _evened(dense: ModelShape, unit: Unit, layers: Sequence[int], step: int) -> list[ModelShape]:
    """From the dense model to the smallest blocks, as few steps apart as layers allow."""
    whole, found = size_of(dense, (0, unit)), [dense]
    for size in range(whole - step, 0, -step):
        found += _between(dense, unit, layers, size, step)
    return found


def _between(
    base: ModelShape, unit: Unit, layers: Sequence[int], size: int, step: int
) -> list[ModelShape]:
    """Blocks of one size, of which ever fewer, evenly spaced, keep one step more; none at last."""
    found = []
    for count in range(len(layers) - 1, -1, -1):
        more = {layers[position * len(layers) // count] for position in range(count)}
        sizes = {layer: size + step if layer in more else size for layer in layers}
        found.append(_with_sizes(base, unit, sizes))
    return found


def _with_sizes(base: ModelShape, unit: Unit, sizes: Mapping[int, int]) -> ModelShape:
    for layer, size in sizes.items():
        base = resized(base, (layer, unit), size)
    return base


def _keeps(shape: ModelShape, limits: Sequence[Limit]) -> bool:
    return all(limit.is_kept(limit.cost(shape)) for limit in limits)


def _out_of_reach(
    accounting: Accounting,
    limits: Sequence[Limit],
    attention: ModelShape,
    layers: Sequence[int],
    group: int,
) -> list[str]:
    """How far each limit goes that is not kept at the smallest sizes."""
    lowest = accounting.geometry.mlp_channels % group or group
    smallest = _with_sizes(attention, "mlp_channels", dict.fromkeys(layers, lowest))
    fewest = min(layer.kv_heads for layer in attention.layers)
    whole = fewest == accounting.geometry.kv_heads
    sizes = f"MLPs of {lowest} channels" + (
        "" if whole else f" and attentions of {fewest} KV head{'s' if fewest > 1 else ''}"
    )
    beside = ", with attention whole" if whole else ""
    return [
        f"{limit.name}: {limit.as_given(limit.most)}; {sizes} in {len(layers)} of "
        f"{accounting.geometry.num_layers} layers come to {limit.as_given(reached)}{beside}; "
        f"{limit.easier}, or use smaller groups"
        for limit, reached in [(each, each.cost(smallest)) for each in limits]
        if not limit.is_kept(reached)
    ]
