"""What a published run says of parameters, steps and evaluations, against what we count and plan,
from the configuration alone.
"""

from __future__ import annotations

from transformers import AutoConfig, PretrainedConfig

from pipelines.config.expected import ExpectedConfig
from pipelines.config.reproduce import ReproduceConfig
from pipelines.plan.estimate import search_plan
from pipelines.reproduce.verdict import Check, compared, contained, not_checked, same
from pipelines.runs.targets import search_settings
from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.search.implied import implied_search, target_range, whole_blocks
from pruning.search.plan import Range, SearchPlan
from pruning.search.strategies import STRATEGIES, strategy_of
from pruning.shape import ModelShape

_STAGES = {"block": "blocks", "mlp_channels": "MLP channels", "attention_heads": "attention heads"}
_TARGETS = "target ratio that ends in this shape"


def count_checks(config: ReproduceConfig) -> list[Check]:
    """Every check that needs no weights.

    Raises:
        InputError: the experiment does not say how large the model is, or its shape is of another
            model.
    """
    expected = config.reference
    if "model_type" not in expected.config:
        raise InputError(
            "expected.config: it has no model_type; mode=counts takes the sizes of the dense "
            "model from there"
        )
    model_config = AutoConfig.for_model(**expected.config)
    accounting = published_accounting(expected, model_config)
    shape = expected_shape(expected, accounting)
    checks = [
        compared(
            "parameters, dense",
            expected.dense.num_parameters,
            accounting.num_dense_parameters,
            expected.tolerance.num_parameters,
        )
    ]
    if shape is None:
        return checks + _checks_without_shape(config, accounting)
    return (
        checks
        + pruned_counts(expected, accounting, shape)
        + _layers_checks(expected, shape)
        + _plan_checks(config, Accounting(model_config), shape)
    )


def published_accounting(
    expected: ExpectedConfig, model_config: PretrainedConfig, *, trust_remote_code: bool = False
) -> Accounting:
    """Counts as the source of the figures counted."""
    return Accounting(
        model_config, keep_qkv_bias=expected.keep_qkv_bias, trust_remote_code=trust_remote_code
    )


def expected_shape(expected: ExpectedConfig, accounting: Accounting) -> ModelShape | None:
    """The shape that is expected; None if none is known.

    Raises:
        InputError: it is not one of this model.
    """
    if expected.shape is None:
        return None
    shape = ModelShape.parse(expected.shape)
    problems = accounting.geometry.problems(shape)
    if problems:
        raise InputError(
            "\n".join(
                f"expected.shape: it does not fit this model: {problem}" for problem in problems
            )
        )
    return shape


def pruned_counts(
    expected: ExpectedConfig, accounting: Accounting, shape: ModelShape
) -> list[Check]:
    """Parameters of a shape, and the ratio that follows."""
    dense, pruned = expected.dense.num_parameters, expected.pruned.num_parameters
    ratio = 1 - pruned / dense if dense and pruned else expected.ratio
    rounding = (
        0.0
        if dense and pruned and expected.tolerance.num_parameters == 0
        else expected.tolerance.ratio_rounding
    )
    return [
        compared(
            "parameters, pruned",
            pruned,
            accounting.num_parameters(shape),
            expected.tolerance.num_parameters,
        ),
        compared("ratio", ratio, accounting.ratio(shape), rounding + 1e-12),
    ]


def _layers_checks(expected: ExpectedConfig, shape: ModelShape) -> list[Check]:
    """The lists of removed blocks and the shape are two accounts of the same thing."""
    found = []
    for quantity, listed, gone in (
        (
            "layers without attention",
            expected.removed_attention,
            [index for index, layer in enumerate(shape.layers) if not layer.kv_heads],
        ),
        (
            "layers without MLP",
            expected.removed_mlp,
            [index for index, layer in enumerate(shape.layers) if not layer.mlp_channels],
        ),
    ):
        found += [] if listed is None else [same(quantity, sorted(listed), gone)]
    return found


def _plan_checks(config: ReproduceConfig, accounting: Accounting, shape: ModelShape) -> list[Check]:
    """What the shape implies must be among what the plan of our search covers.

    Searches count no biases of what is removed.
    """
    expected = config.reference
    names = [f"{what}, {stage}" for stage in _STAGES.values() for what in ("steps", "evaluations")]
    others = [name for name, (cost, _) in config.search.asked.items() if cost != "parameters"]
    if others:
        why = f"{', '.join(others)}: such a search ends by other costs than a shape's parameters"
        return [not_checked(name, why) for name in (_TARGETS, *names)]
    settings = search_settings(config, accounting)
    if expected.no_plan is not None or not strategy_of(settings).compares_candidates:
        why = expected.no_plan or f"search.strategy={settings.strategy} evaluates no candidates"
        return [not_checked(name, why) for name in (_TARGETS, *names)]
    implied = implied_search(
        accounting,
        shape,
        mlp_group=settings.mlp_group_channels,
        head_group=settings.head_group_channels // accounting.geometry.channels_per_kv_head,
    )
    targets = target_range(implied, settings.distribution)
    if targets is None:
        checks = [
            Check(
                _TARGETS,
                "none: the distribution cannot lead to it",
                settings.target_ratio,
                None,
                None,
                "outside",
            )
        ]
    else:
        checks = [_target_check(targets, settings.target_ratio)]
    plan = search_plan(accounting, settings)
    why_not = "search.selection=lazy scores a part of the candidates" if settings.lazy else ""
    for stage in implied:
        steps, evaluations = _planned(plan, stage.name)
        checks.append(
            contained(
                f"steps, {_STAGES[stage.name]}", (stage.steps, stage.steps), (steps.min, steps.max)
            )
        )
        name = f"evaluations, {_STAGES[stage.name]}"
        checks.append(
            not_checked(name, why_not)
            if why_not
            else contained(
                name,
                (stage.evaluations.min, stage.evaluations.max),
                (evaluations.min, evaluations.max),
            )
        )
    return checks


def _target_check(targets: tuple[float, float], target: float) -> Check:
    inside = targets[0] < target <= targets[1]
    return Check(
        _TARGETS,
        f"above {targets[0]:.5f}, up to {targets[1]:.5f}",
        target,
        None,
        None,
        "within" if inside else "outside",
    )


def _planned(plan: SearchPlan, name: str) -> tuple[Range, Range]:
    """Steps and evaluations of a stage."""
    return next((stage.steps, stage.evaluations) for stage in plan.stages if stage.name == name)


def _checks_without_shape(config: ReproduceConfig, accounting: Accounting) -> list[Check]:
    """Of methods that remove whole blocks, a published ratio says how many went."""
    ratio, search = config.reference.ratio, config.search
    checks = [not_checked("parameters, pruned", "no shape is published")]
    if ratio is None:
        return [*checks, not_checked("ratio", "only the target is published")]
    if any(search.distribution[1:]):
        return [*checks, not_checked("ratio", "without a shape it follows from nothing")]
    nearest, attention, mlp = whole_blocks(
        accounting, ratio, layers=STRATEGIES[search.strategy].whole_layers
    )
    quantity = f"ratio, nearest of whole blocks ({attention} attention, {mlp} MLP)"
    return [
        *checks,
        compared(quantity, ratio, nearest, config.reference.tolerance.ratio_rounding + 1e-9),
    ]
