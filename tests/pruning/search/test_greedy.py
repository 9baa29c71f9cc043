from __future__ import annotations

import math

import pytest

from pruning.costs.accounting import Accounting
from pruning.errors import InputError, ScoringError, TargetNotReached
from pruning.importance.block_influence import BlockInfluence
from pruning.search.fixed import FixedSearch, random_path
from pruning.search.greedy import GreedySearch
from pruning.search.settings import SearchSettings, ShapeConstraint
from pruning.search.stages import make_stages
from pruning.shape import Kind, ModelShape, Removal
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def accounting() -> Accounting:
    return Accounting(tiny_config("qwen3"))


def settings_of(
    accounting: Accounting,
    ratio: float,
    distribution: tuple[float, ...],
    mlp: int = 16,
    heads: int = 16,
    constraint: ShapeConstraint = "none",
) -> SearchSettings:
    return SearchSettings.resolved(
        accounting.geometry,
        target_ratio=ratio,
        distribution=distribution,
        mlp_group_channels=mlp,
        head_group_channels=heads,
        shape_constraint=constraint,
    )


def make_search(
    accounting: Accounting,
    ratio: float = 0.3,
    distribution: tuple[float, ...] = (40, 40, 20),
    mlp: int = 16,
    heads: int = 16,
) -> GreedySearch:
    return GreedySearch(accounting, settings_of(accounting, ratio, distribution, mlp, heads))


def score(shape: ModelShape) -> float:
    """A made-up NLL: early layers matter more."""
    return sum(
        (3 - layer.kv_heads + (48 - layer.mlp_channels) / 16) / (index + 1)
        for index, layer in enumerate(shape.layers)
    )


def run(search: GreedySearch) -> GreedySearch:
    while not search.done:
        search.observe(
            {candidate: score(search.shape.without(candidate)) for candidate in search.propose()}
        )
    return search


def test_stages_have_cumulative_targets(accounting: Accounting) -> None:
    search = make_search(accounting, 0.3, (44, 52, 4))
    assert [stage.name for stage in search.stages] == ["block", "mlp_channels", "attention_heads"]
    assert [stage.target_ratio for stage in search.stages] == pytest.approx([0.132, 0.288, 0.3])
    assert search.stages[2].target_ratio == 0.3


def test_each_stage_ends_at_its_target(accounting: Accounting) -> None:
    search = run(make_search(accounting))
    for index, step in enumerate(search.steps):
        target = next(stage.target_ratio for stage in search.stages if stage.name == step.stage)
        before = search.steps[index - 1].ratio if index else 0.0
        assert before < target
    assert search.ratio >= 0.3
    assert {step.stage for step in search.steps} == {"block", "mlp_channels", "attention_heads"}


def test_candidates_of_each_stage(accounting: Accounting) -> None:
    search = make_search(accounting, 0.9, (90, 5, 5))
    assert search.propose() == tuple(Removal("attention", layer, 0) for layer in range(4)) + tuple(
        Removal("mlp", layer, 0) for layer in range(4)
    )
    search.shape = ModelShape.parse("0x48 2x0 1x16 3x32")
    search.stages = search.stages[1:2]
    assert search.propose() == (Removal("mlp_channels", 0, 32), Removal("mlp_channels", 3, 16)), (
        "16 channels are not > 0 after one more group"
    )
    search.stages = make_search(accounting, 0.9, (0, 0, 1)).stages[2:]
    assert search.propose() == (Removal("attention_heads", 1, 1), Removal("attention_heads", 3, 2))


def test_lowest_score_wins_and_ties_go_to_the_first(accounting: Accounting) -> None:
    search = make_search(accounting)
    scores = dict.fromkeys(search.propose(), 2.0)
    step = search.observe(
        scores
        | {
            Removal("attention", 2, 0): 1.0,
            Removal("mlp", 0, 0): 1.0,
            Removal("attention", 3, 0): 1.0,
        }
    )
    assert step.removal == Removal("attention", 2, 0)
    assert step.margin == 0.0
    step = search.observe(dict.fromkeys(search.propose(), 2.0) | {Removal("mlp", 1, 0): 1.5})
    assert (step.removal, step.margin, step.nll) == (Removal("mlp", 1, 0), 0.5, 1.5)


def test_the_runner_up_is_the_best_of_the_rest(accounting: Accounting) -> None:
    """Equal scores: the first in order, also where the winner comes later."""
    search = make_search(accounting)
    candidates = search.propose()
    scores = dict.fromkeys(candidates, 2.0) | {
        candidates[0]: -math.inf,
        candidates[1]: math.nan,
        candidates[3]: 1.0,
    }
    step = search.observe(scores)
    assert (step.removal, step.runner_up, step.margin) == (candidates[3], (candidates[2], 2.0), 1.0)
    only = dict.fromkeys(search.propose(), math.inf) | {search.propose()[4]: 3.0}
    step = search.observe(only)
    assert (step.runner_up, step.margin) == (None, None)


def test_blocks_are_scored_on_one_text_and_widths_on_another(accounting: Accounting) -> None:
    assert [stage.token_set for stage in make_search(accounting).stages] == [
        "block",
        "width",
        "width",
    ]


def test_scores_that_are_not_finite_are_out(accounting: Accounting) -> None:
    search = make_search(accounting)
    candidates = search.propose()
    scores = dict.fromkeys(candidates, 3.0) | {
        candidates[0]: math.nan,
        candidates[1]: -math.inf,
        candidates[5]: math.inf,
    }
    step = search.observe(scores)
    assert step.removal == candidates[2]
    assert set(step.excluded) == {candidates[0], candidates[1], candidates[5]}
    with pytest.raises(ScoringError, match="all 7 candidates is NaN or infinite"):
        search.observe(dict.fromkeys(search.propose(), math.nan))


def test_a_missing_score_is_an_error(accounting: Accounting) -> None:
    search = make_search(accounting)
    with pytest.raises(KeyError):
        search.observe({search.propose()[0]: 1.0})
    assert not search.steps


def test_a_target_out_of_reach_says_how_far_it_got(accounting: Accounting) -> None:
    search = make_search(accounting, 0.6, (0, 100, 0), mlp=24)
    with pytest.raises(
        TargetNotReached,
        match=(
            r"'mlp_channels' has no candidate left at ratio 0\.\d+, below its target of "
            r"0\.6000 \(after 4 steps\)"
        ),
    ):
        run(search)
    assert len(search.steps) == 4


def test_a_stage_that_is_met_does_nothing(accounting: Accounting) -> None:
    assert {step.stage for step in run(make_search(accounting, 0.2, (0, 1, 0))).steps} == {
        "mlp_channels"
    }
    assert {step.stage for step in run(make_search(accounting, 0.2, (1, 0, 0))).steps} == {"block"}


def test_replaying_scores_rebuilds_the_search(accounting: Accounting) -> None:
    done = run(make_search(accounting))
    again = make_search(accounting)
    for step in done.steps:
        again.observe(dict(step.candidates))
    assert again.steps == done.steps
    assert again.done


def test_expected_evaluations_shrink_to_zero(accounting: Accounting) -> None:
    search = make_search(accounting)
    expected = [search.expected_evaluations()]
    while not search.done:
        search.observe(
            {candidate: score(search.shape.without(candidate)) for candidate in search.propose()}
        )
        expected.append(search.expected_evaluations())
    total = sum(len(step.candidates) for step in search.steps)
    assert expected[-1] == 0
    assert expected == sorted(expected, reverse=True)
    assert 0.5 * total <= expected[0] <= 2 * total


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mlp": 49}, "mlp_group_channels: 49; this model's MLPs have 48 channels"),
        ({"heads": 8}, r"head_group_channels: 8; .*one of \[16\]$"),
        ({"heads": 32}, r"head_group_channels: 32; .*one of \[16\]$"),
        ({"mlp": 0, "heads": 5}, "(?s)mlp_group_channels: 0.*head_group_channels: 5"),
    ],
)
def test_groups_that_do_not_fit(
    accounting: Accounting, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_search(accounting, **settings)  # type: ignore[arg-type]


def test_a_single_kv_head_stays() -> None:
    """Gemma 3 270M and 1B: the stage of heads would end hours of search without a candidate."""
    accounting = Accounting(tiny_config("gemma3_text", num_key_value_heads=1))
    with pytest.raises(
        InputError,
        match=r"distribution: .*one KV head in a layer, which stays; use search=multipruner_mqa",
    ):
        make_search(accounting, heads=48)
    assert run(make_search(accounting, distribution=(44, 56, 0), heads=48)).done


def test_block_only_families_refuse_widths() -> None:
    with pytest.raises(InputError, match=r"whole blocks only; use search.distribution=\[1,0,0\]"):
        make_search(Accounting(tiny_config("starcoder2")))


def test_a_deployable_search_keeps_what_every_runtime_needs() -> None:
    """Attention in the first layer, an MLP in the last, widths in multiples of 256, however far it
    goes.
    """
    accounting = Accounting(tiny_config("llama", intermediate_size=1024))
    search = GreedySearch(
        accounting, settings_of(accounting, 0.8, (45, 45, 10), mlp=256, constraint="deployable")
    )
    assert len(search.propose()) == 8 - 2
    before = search.expected_evaluations()
    with pytest.raises(TargetNotReached):
        run(search)
    assert search.shape.layers[0].kv_heads
    assert search.shape.layers[-1].mlp_channels
    assert all(layer.mlp_channels % 256 == 0 for layer in search.shape.layers)
    free = make_search(accounting, 0.8, (45, 45, 10), mlp=256)
    assert before < free.expected_evaluations()
    assert len(free.propose()) == 8


@pytest.mark.parametrize(("channels", "group"), [(1000, 256), (1024, 100)])
def test_deployable_widths(channels: int, group: int) -> None:
    accounting = Accounting(tiny_config("llama", intermediate_size=channels))
    with pytest.raises(
        InputError,
        match=(
            f"search.shape_constraint: deployable, .*this model has {channels} channels and "
            f"search.mlp_group_channels takes {group}"
        ),
    ):
        make_stages(
            accounting, settings_of(accounting, 0.3, (40, 40, 20), group, constraint="deployable")
        )
    make_stages(
        accounting, settings_of(accounting, 0.3, (80, 0, 20), group, constraint="deployable")
    )


def make_fixed(
    accounting: Accounting,
    path: tuple[tuple[Removal, ...], ...],
    ratio: float,
    constraint: ShapeConstraint = "none",
) -> FixedSearch:
    settings = settings_of(accounting, ratio, (7, 0, 0), constraint=constraint)
    return FixedSearch(accounting, settings, path)


def test_a_fixed_search_has_one_candidate_a_step(accounting: Accounting) -> None:
    path = random_path(accounting.dense, 3)
    search = make_fixed(accounting, path, 0.4)
    left = [search.expected_evaluations()]
    while not search.done:
        [candidate] = search.propose()
        step = search.observe({candidate: 100.0 - len(search.steps)})
        assert (step.stage, step.removal, step.margin) == ("block", candidate, None)
        left.append(search.expected_evaluations())
    assert left == list(range(len(search.steps), -1, -1)), "it knows how many are left"
    assert [step.removal for step in search.steps] == [
        group[0] for group in path[: len(search.steps)]
    ]
    assert search.steps[-2].ratio < 0.4 <= search.ratio


def test_a_fixed_search_ends_between_groups(accounting: Accounting) -> None:
    """Whole layers: the last one goes whole, also where its attention alone would do."""
    path = BlockInfluence((0.4, 0.2, 0.3, 0.1)).path
    one = (
        run(make_fixed(accounting, path[:1], 1e-6)).ratio,
        run(make_fixed(accounting, path[:1], 1e-6)).steps,
    )
    assert [step.removal for step in one[1]] == [Removal("attention", 3, 0), Removal("mlp", 3, 0)]
    for target in (one[1][0].ratio, one[0] - 1e-9, one[0]):
        assert run(make_fixed(accounting, path, target)).shape == ModelShape.parse("3x48*3 0x0")
    beyond = make_fixed(accounting, path, one[0] + 1e-9)
    assert beyond.expected_evaluations() == 4
    assert run(beyond).shape == ModelShape.parse("3x48 0x0 3x48 0x0")


def test_drawn_orders_are_reproducible_nested_and_differ(accounting: Accounting) -> None:
    dense = accounting.dense
    kinds: tuple[Kind, ...] = ("attention", "mlp")
    blocks = {Removal(kind, layer, 0) for kind in kinds for layer in range(4)}
    assert {removal for [removal] in random_path(dense, 42)} == blocks
    assert random_path(dense, 42) == random_path(dense, 42)
    assert len({random_path(dense, seed) for seed in range(20)}) == 20
    short, long = (
        run(make_fixed(accounting, random_path(dense, 42), ratio)) for ratio in (0.2, 0.5)
    )
    assert 0 < len(short.steps) < len(long.steps)
    assert [step.removal for step in long.steps][: len(short.steps)] == [
        step.removal for step in short.steps
    ]


def test_fixed_searches_keep_what_every_runtime_needs(accounting: Accounting) -> None:
    drawn = make_fixed(accounting, random_path(accounting.dense, 1), 0.9, "deployable")
    layers = make_fixed(accounting, BlockInfluence((0.0, 0.2, 0.1, 0.0)).path, 0.9, "deployable")
    for search in (drawn, layers):
        with pytest.raises(TargetNotReached, match=r"Lower the target\. Everything"):
            run(search)
        assert search.shape.layers[0].kv_heads
        assert search.shape.layers[-1].mlp_channels
    assert drawn.shape == ModelShape.parse("3x0 0x0*2 0x48")
    assert layers.shape == ModelShape.parse("3x48 0x0*2 3x48")


def test_a_score_that_is_not_finite_stops_a_fixed_search(accounting: Accounting) -> None:
    search = make_fixed(accounting, random_path(accounting.dense, 1), 0.4)
    with pytest.raises(ScoringError, match="all 1 candidates is NaN"):
        search.observe(dict.fromkeys(search.propose(), math.nan))


def test_expected_evaluations_by_hand() -> None:
    """Four attentions of 7,056 parameters, four MLPs of 14,064, of whose channels 16 are 2,336."""
    accounting = Accounting(tiny_config("llama", intermediate_size=96))
    assert accounting.num_dense_parameters == 97_200
    search = make_search(accounting, 0.4, (50, 50, 0))
    # To 19,440: 2 steps of 10,560 with 8 candidates; from there to 38,880: 8 groups of 4 layers.
    assert search.expected_evaluations() == 2 * 8 + 8 * 4
    search.observe(dict.fromkeys(search.propose(), 1.0))
    # 12,384 are left to 19,440: 2 steps of (3 x 7,056 + 4 x 14,064) / 7; from there 5 groups.
    assert search.steps[0].removal == Removal("attention", 0, 0)
    assert search.expected_evaluations() == 2 * 7 + 5 * 4


def test_a_fixed_search_of_heads_knows_how_many_are_left() -> None:
    """A KV head is 2,336 of 69,168 parameters: two of them are the first to be 6 %."""
    accounting = Accounting(tiny_config("llama"))
    path = [[Removal("attention_heads", layer, 2)] for layer in range(4)]
    search = FixedSearch(accounting, settings_of(accounting, 0.06, (0, 0, 1)), path)
    assert search.expected_evaluations() == 2
    assert run(search).shape == ModelShape.parse("2x48*2 3x48*2")


def test_a_share_below_one_asks_for_as_much(accounting: Accounting) -> None:
    """Shares are relative: 0.04 of heads asks for groups of whole KV heads, as 4 does."""
    for shares in ((0.5, 0.46, 0.04), (50, 46, 4)):
        with pytest.raises(InputError, match="search.head_group_channels: 7"):
            make_search(accounting, distribution=shares, heads=7)
