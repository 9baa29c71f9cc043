"""Where a search leaves the path that was published: removal by removal, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config.expected import ExpectedConfig
from pipelines.reproduce.verdict import Check, compared, not_checked, same
from pruning.shape import ModelShape, Removal

Lines = Sequence[Mapping[str, Any]]
"""Of a trajectory.jsonl."""

_BLOCKS = {"attention": "removed_attention", "mlp": "removed_mlp"}


def removal_text(removal: Removal) -> str:
    """One removal as `expected.steps` lists it: kind, layer, and for widths what remains, such as
    `attention:25`, `mlp_channels:3:9984`.
    """
    remaining = "" if removal.kind in _BLOCKS else f":{removal.remaining}"
    return f"{removal.kind}:{removal.layer}{remaining}"


def trajectory_checks(expected: ExpectedConfig, lines: Lines) -> list[Check]:
    """The order of removals, as far as it is known."""
    if expected.steps is not None:
        return [
            same(
                "order of all removals", expected.steps, [_text(line["removed"]) for line in lines]
            )
        ]
    found = []
    for kind, name in _BLOCKS.items():
        wanted = getattr(expected, name)
        quantity = (
            f"{'attention' if kind == 'attention' else 'MLP'} blocks in the order that they went"
        )
        found.append(
            not_checked(quantity, "no order is expected")
            if wanted is None
            else same(quantity, wanted, _removed(lines, kind))
        )
    return found


def shape_check(expected: ModelShape, measured: ModelShape) -> Check:
    """How many layers differ."""
    return compared("layers whose shape differs", 0, len(layer_differences(expected, measured)), 0)


def layer_differences(expected: ModelShape, measured: ModelShape) -> list[dict[str, Any]]:
    """Every layer that differs, as KV heads x MLP channels."""
    return [
        {
            "layer": index,
            "expected": f"{a.kv_heads}x{a.mlp_channels}",
            "measured": f"{b.kv_heads}x{b.mlp_channels}",
        }
        for index, (a, b) in enumerate(zip(expected.layers, measured.layers, strict=True))
        if a != b
    ]


def first_divergence(expected: ExpectedConfig, lines: Lines) -> dict[str, Any] | None:
    """The first step at which something else went than expected, and how far apart the two scored
    there; None if there is none.

    Where only the order of each kind of block is known, that is the first step that took a block in
    another place of that order.
    """
    found = [
        _divergence(wanted, [(line, _text(line["removed"])) for line in lines if of_kind(line)])
        for wanted, of_kind in _orders(expected)
    ]
    known = [divergence for divergence in found if divergence is not None]
    return min(known, key=lambda divergence: divergence["step"] or len(lines) + 1, default=None)


def divergence_text(divergence: Mapping[str, Any]) -> str:
    """One line for people."""
    if divergence["taken"] is None:
        return f"the search ended before {divergence['expected']} was removed"
    where = f"step {divergence['step']} removed {divergence['taken']}"
    if divergence["expected"] is None:
        return f"{where}, where nothing more was expected"
    apart = divergence["nll_difference"]
    known = (
        f", which scored {apart:+.6f} nat per token against it"
        if apart is not None
        else ", which was no candidate there"
    )
    if divergence.get("change_expected") is not None:
        known = (
            ", which was left out there (search.selection=lazy): its last known change was "
            f"{divergence['change_expected']:+.6f} nat per token"
        )
    return f"{where}; expected was {divergence['expected']}{known}"


def _orders(expected: ExpectedConfig) -> list[tuple[list[str], Any]]:
    if expected.steps is not None:
        return [(list(expected.steps), lambda line: True)]
    orders: list[tuple[list[str], Any]] = []
    for kind, name in _BLOCKS.items():
        layers = getattr(expected, name)
        if layers is not None:
            orders.append(
                (
                    [f"{kind}:{layer}" for layer in layers],
                    lambda line, kind=kind: line["removed"]["kind"] == kind,
                )
            )
    return orders


def _divergence(
    wanted: Sequence[str], taken: Sequence[tuple[Mapping[str, Any], str]]
) -> dict[str, Any] | None:
    for index in range(max(len(wanted), len(taken))):
        theirs = wanted[index] if index < len(wanted) else None
        line, ours = taken[index] if index < len(taken) else (None, None)
        if theirs != ours:
            scores = (
                {_text(candidate): candidate["nll"] for candidate in line["candidates"]}
                if line
                else {}
            )
            left_out = {_text(each): each["change"] for each in (line or {}).get("unscored", ())}
            there, here = scores.get(theirs) if theirs else None, scores.get(ours) if ours else None
            return {
                "step": line["step"] if line else None,
                "expected": theirs,
                "taken": ours,
                "nll_expected": there,
                "nll_taken": here,
                "nll_difference": there - here if there is not None and here is not None else None,
                **({"change_expected": left_out[theirs]} if theirs in left_out else {}),
            }
    return None


def _removed(lines: Lines, kind: str) -> list[int]:
    return [line["removed"]["layer"] for line in lines if line["removed"]["kind"] == kind]


def _text(removed: Mapping[str, Any]) -> str:
    return removal_text(Removal.from_json(removed))
