"""What a search will take: steps, evaluations, FLOPs, and the rate of an earlier one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.config.recovery import RecoveryConfig
from pipelines.runs.files import CONFIG, SUMMARY, TRAJECTORY, read_json, read_trajectory, read_yaml
from pipelines.runs.journal import set_of
from pruning.costs.accounting import Accounting
from pruning.costs.known_sizes import sizes_of
from pruning.errors import InputError
from pruning.models.geometry import gram_bytes
from pruning.recovery.flops import training_flops
from pruning.search.plan import SearchPlan, merged, planned_flops, step_flops
from pruning.search.settings import SearchSettings
from pruning.search.strategies import strategy_of
from pruning.shape import ModelShape, Removal
from workers.evaluators.memory import layers_per_task

ROUNDING = 0.0005
"""Half of the last digit of a ratio that is given in tenths of a percent.

The ranges hold for every ratio that rounds to the target: published searches end as early as that
(Llama-2-7B's 22 % at 0.2196).
"""


TOKENS_PER_ROW = {"alpaca": 128, "c4": 480, "ptb": 28}
"""Of calibration sets that are made of rows, roughly; the paper's 256 rows of Alpaca give 16
sequences of 2,048.
"""


_REUSED = 0.05
"""A search looks up a few of its own scores again."""


def search_plan(accounting: Accounting, settings: SearchSettings) -> SearchPlan:
    """The ranges for the target, and for the lowest and highest ratio of parameters that round to
    it.
    """
    ratio = settings.target_ratio
    plans = [
        strategy_of(replace(settings, target_ratio=each)).planned(accounting)
        for each in ((ratio, ratio - ROUNDING, ratio + ROUNDING) if ratio else (ratio,))
    ]
    return merged(plans) if plans[0].impossible is None else plans[0]


def measured_tflops(folder: Path) -> float:
    """10^12 FLOPs per second and evaluator of an earlier search, from its trajectory.

    Raises:
        InputError: it has not ended, a file of it is damaged, it took its scores from the store,
            which says nothing about speed, or the FLOPs of its model are not known.
    """
    missing = [name for name in (SUMMARY, CONFIG, TRAJECTORY) if not (folder / name).exists()]
    if missing:
        raise InputError(
            f"rate_of: {folder} is not the output_dir of a search that has ended: it has no "
            f"{', '.join(missing)}"
        )
    summary = read_json(
        folder / SUMMARY, option="rate_of", fields=("evaluations", "calibration", "num_evaluators")
    )
    config = read_yaml(folder / CONFIG, option="rate_of", fields=("model.path",))
    lines = read_trajectory(folder / TRAJECTORY, option="rate_of")
    if not lines:
        raise InputError(f"rate_of: the search in {folder} has not taken a step yet")
    accounting = Accounting(sizes_of(config.model.path, revision=config.model.revision))
    total = trajectory_flops(accounting, lines, summary["calibration"])
    if total is None:
        raise InputError(
            f"rate_of: {folder}; the FLOPs of its model ({accounting.family.model_type}) are not "
            "known, so that its time says no rate; give a search of another model"
        )
    if not computed(summary["evaluations"]):
        raise InputError(
            f"rate_of: the search in {folder} took scores from the store, so that its time says "
            "nothing of its work; give another"
        )
    return total / (
        float(sum(line["seconds"] for line in lines)) * int(summary["num_evaluators"]) * 1e12
    )


def computed(evaluations: Mapping[str, int]) -> bool:
    """Whether a search computed its scores, but for the few that it looks up again, so that its
    time says something of its work.
    """
    return evaluations["reused"] <= _REUSED * evaluations["scored"]


def trajectory_flops(
    accounting: Accounting,
    lines: Sequence[Mapping[str, Any]],
    calibration: Mapping[str, Mapping[str, Any]],
) -> float | None:
    """FLOPs of the steps of a trajectory, where each batch runs through the current shape once;
    None: not known.

    Args:
        calibration: `num_sequences` and `sequence_length` of the sets `block` and `width`, as in
            summary.json.
    """
    total, base = 0.0, accounting.dense
    for line in lines:
        tokens = calibration[set_of(line)]
        removals = [Removal.from_json(candidate) for candidate in line["candidates"]]
        flops = step_flops(
            accounting,
            removals,
            base,
            num_sequences=tokens["num_sequences"],
            sequence_length=tokens["sequence_length"],
        )
        if flops is None:
            return None
        total += flops
        base = ModelShape.parse(line["shape"])
    return total


def search_flops(
    accounting: Accounting,
    found: SearchPlan,
    sequences: Mapping[str, int],
    *,
    sequence_length: int,
    batch_size: int,
    num_evaluators: int,
) -> float | None:
    """FLOPs of a whole search, estimated; None: not known.

    Args:
        sequences: of the calibration sets `block` and `width`.
    """
    return planned_flops(
        accounting,
        found,
        tokens={name: count * sequence_length for name, count in sequences.items()},
        sequence_length=sequence_length,
        num_prefixes={
            name: max(1.0, num_evaluators / -(-count // batch_size))
            for name, count in sequences.items()
        },
    )


def planned_recovery(accounting: Accounting, config: RecoveryConfig) -> dict[str, Any]:
    """`recovery`, where it is wanted: what the training after a search takes at most, as of the
    dense model's size; how much of it is left is not known yet. FLOPs: None where they are not
    known.
    """
    if not config.wanted:
        return {}
    flops = training_flops(
        accounting,
        accounting.dense,
        config.settings(),
        sequence_length=config.sequence_length,
        num_heldout_sequences=config.num_heldout_sequences,
    )
    num_tokens = config.steps * config.batch_size * config.sequence_length
    return {"recovery": {"steps": config.steps, "num_tokens": num_tokens, "flops": flops}}


def planned_statistics(
    accounting: Accounting, *, num_tokens: int, num_evaluators: int, sequence_length: int
) -> dict[str, float | None]:
    """What the statistics of a compensation take: passes over the text, one for each task; bytes
    that they have on disk; FLOPs of passes and Gram matrices, None where they are not known.
    """
    geometry = accounting.geometry
    passes = -(-geometry.num_layers // layers_per_task(geometry, num_evaluators))
    dense = accounting.flops_per_token(accounting.dense, context_length=sequence_length)
    grams, head = geometry.num_layers * gram_bytes(geometry), accounting.head_weights
    per_token = None if dense is None or head is None else passes * (dense - 2 * head) + grams // 4
    return {
        "num_tokens": num_tokens,
        "passes": passes,
        "bytes": grams // 2,
        "flops": None if per_token is None else float(num_tokens * per_token),
    }


def num_sequences(source: str, num_samples: int, sequence_length: int) -> int:
    """Sequences that so many samples of a source come to: rows of text are joined and cut."""
    return (
        max(1, num_samples * TOKENS_PER_ROW[source] // sequence_length)
        if source in TOKENS_PER_ROW
        else num_samples
    )
