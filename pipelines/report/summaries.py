"""What a report takes from a `summary.json`; what older ones lack is not known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.report.data import Pair, Sample
from pipelines.runs.candidates import search_in_words
from pruning.costs.latency import PHASES
from pruning.costs.target import TIMED
from pruning.scoring.score import ShapeScore


def nll_per_sequence(summary: Mapping[str, Any]) -> dict[str, tuple[ShapeScore, ShapeScore]]:
    """Of each held-out set, dense and pruned."""
    return {
        set_name: (_sequences(nll["dense"]), _sequences(nll["pruned"]))
        for set_name, nll in summary.get("nll_per_sequence", {}).items()
    }


def _sequences(nll: Sequence[float | None]) -> ShapeScore:
    """As scores of one token each, since these are per token already."""
    return ShapeScore(tuple(math.nan if each is None else float(each) for each in nll), 1)


def heldout_text(model: str, text: Mapping[str, Any], perplexity: Pair) -> str:
    """Equal for what compares: the same tokens, for the same model."""
    of_old_folders = (
        text.get("num_sequences"),
        text.get("sequence_length"),
        f"{perplexity.dense or 0:.3g}",
    )
    return str((model, text.get("fingerprint") or of_old_folders))


def milliseconds(
    summary: Mapping[str, Any], identity: Mapping[str, str]
) -> tuple[str, Pair] | None:
    """Of the first target in time: by the clock where both models were timed, else by the table."""
    name = next((each for each in TIMED if each in summary.get("costs", {})), None)
    if name is None:
        return None
    of, measured = "" if name == "latency" else f"{name} of ", summary["latency"].get("measured")
    table = f"table {identity['latency'][:8]}" if "latency" in identity else "the table"
    if measured is not None:
        phases = [measured[phase] for phase in PHASES if name in ("latency", phase)]
        dense, pruned = (
            1e3 * sum(float(phase[f"{role}_seconds"]) for phase in phases)
            for role in ("dense", "pruned")
        )
        how = f"measured on {measured['device']} as {table} says"
        return f"{of}a batch, {how}", Pair(dense, pruned)
    cost = summary["costs"][name]
    times = Pair(*(1e-6 * float(cost[role]) for role in ("dense", "pruned")))
    return f"{of}a batch, by {table}", times


def samples(summary: Mapping[str, Any]) -> tuple[Sample, ...]:
    """What both models wrote."""
    return tuple(
        Sample(str(each["prompt"]), str(each["dense"]), str(each["pruned"]))
        for each in summary.get("samples", ())
    )


def costs(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the search took."""
    evaluations = summary["evaluations"]
    return {
        "candidates": search_in_words(evaluations),
        "scored": int(evaluations["scored"]),
        "reused": int(evaluations["reused"]),
        "num_evaluators": int(summary["num_evaluators"]),
        "faults": {str(name): int(count) for name, count in summary["faults"].items()},
        "lost_evaluations": int(summary["lost_evaluations"]),
        # of folders from before these were counted it is not known
        "halved": evaluations.get("halved"),
        "other_arithmetic": evaluations.get("other_arithmetic"),
        "seconds": float(summary["seconds"]),
    }
