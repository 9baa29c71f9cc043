"""What processes that train together tell each other, with threads in their place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from torch import nn

from pruning.errors import InputError
from pruning.recovery import team as team_module
from pruning.recovery.team import Team
from pruning.recovery.training import Recovery
from tests.pruning.recovery.recoveries import dense_model, recovery_of

T = TypeVar("T")

SIZES = pytest.mark.parametrize("size", [2, 3, 7])
"""The last is more processes than there are parts."""
NUM_PARTS = 5


class Group:
    """The calls of `torch.distributed` that a team makes; each waits for all threads."""

    def __init__(self, size: int) -> None:
        self._given: list[Any] = [None] * size
        self._met = threading.Barrier(size, timeout=60)
        self._own = threading.local()

    def run(self, act: Callable[[Team], T]) -> list[T]:
        """What each process of a team comes to, in the order of their ranks."""
        size = len(self._given)

        def member(rank: int) -> T:
            self._own.rank = rank
            torch.set_num_threads(1)
            try:
                return act(Team(rank, size))
            except BaseException:
                self._met.abort()
                raise

        with ThreadPoolExecutor(size) as threads:
            return list(threads.map(member, range(size)))

    def all_gather_object(self, found: list[Any], value: object) -> None:
        found[:] = self._exchanged(value)

    def all_gather(self, found: Sequence[torch.Tensor], value: torch.Tensor) -> None:
        for place, each in zip(found, self._exchanged(value.clone()), strict=True):
            place.copy_(each)

    def broadcast_object_list(self, box: list[Any], src: int) -> None:
        box[:] = self._exchanged(list(box))[src]

    def _exchanged(self, value: Any) -> list[Any]:
        self._given[self._own.rank] = value
        self._met.wait()
        found = list(self._given)
        self._met.wait()
        return found


@pytest.fixture
def group(size: int, monkeypatch: pytest.MonkeyPatch) -> Group:
    found = Group(size)
    monkeypatch.setattr(team_module, "distributed", found)
    return found


def refused(check: Callable[[], None]) -> bool:
    try:
        check()
    except InputError as error:
        return "no longer have the same weights" in str(error)
    return False


def test_a_process_alone_has_all_parts_and_asks_nobody() -> None:
    team, value = Team(), object()
    assert team.share(NUM_PARTS) == range(NUM_PARTS)
    assert team.gathered((3.0, 1.0)) == [3.0, 1.0]
    assert team.told_by_first(value) is value
    team.check_same([nn.Parameter(torch.ones(2))])


@SIZES
def test_values_of_all_parts_in_their_order(group: Group, size: int) -> None:
    squares = [float(part**2) for part in range(NUM_PARTS)]
    found = group.run(lambda team: team.gathered([squares[i] for i in team.share(NUM_PARTS)]))
    assert found == [squares] * size


@SIZES
def test_gradients_are_added_in_the_order_of_the_parts(group: Group, size: int) -> None:
    """To the bit: values of many magnitudes, which another order sums otherwise."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3), (4,))
    parts = [
        [torch.randn(shape, generator=generator) * 10.0**part for shape in shapes]
        for part in range(NUM_PARTS)
    ]

    def added(team: Team) -> list[torch.Tensor | None]:
        weights = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        team.add_up(weights, [parts[part] for part in team.share(NUM_PARTS)], NUM_PARTS)
        return [weight.grad for weight in weights]

    expected = [gradient.clone() for gradient in parts[0]]
    for part in parts[1:]:
        for total, gradient in zip(expected, part, strict=True):
            total += gradient
    found = group.run(added)
    assert len(found) == size
    for gradients in found:
        for gradient, total in zip(gradients, expected, strict=True):
            assert gradient is not None
            assert torch.equal(gradient, total)


@SIZES
def test_the_first_tells_all_of_them(group: Group, size: int) -> None:
    found = group.run(lambda team: team.told_by_first(f"of {team.rank}"))
    assert found == ["of 0"] * size


@SIZES
def test_weights_that_differ_in_one_process_are_refused_by_all(group: Group, size: int) -> None:
    def check(team: Team, odd: int | None) -> bool:
        last = torch.tensor([0.5, 2.0 if team.rank == odd else 1.0])
        return refused(lambda: team.check_same([nn.Parameter(torch.ones(2)), nn.Parameter(last)]))

    assert group.run(partial(check, odd=None)) == [False] * size
    for odd in (0, size - 1):
        assert group.run(partial(check, odd=odd)) == [True] * size


@pytest.mark.parametrize("size", [2])
@pytest.mark.parametrize("rank", [4, None])
def test_a_team_takes_the_updates_of_one_process(group: Group, size: int, rank: int | None) -> None:
    """To the bit; one whose weights are no longer the same is found out."""
    changes: dict[str, Any] = {"batch_size": NUM_PARTS, "micro_batch_size": 1, "dropout": 0.0}
    changes["rank"] = rank

    def trained(recovery: Recovery) -> list[object]:
        found: list[object] = [recovery.heldout_nll()]
        for step in (1, 2):
            update = recovery.update(step)
            assert update is not None
            found += [update.loss, update.grad_norm]
        recovery.check_same()
        return [*found, *(weight.tolist() for weight in recovery.parameters.values())]

    alone = trained(recovery_of(dense_model(), **changes))
    teams = [Team(each, size) for each in range(size)]
    recoveries = [recovery_of(dense_model(), team=team, **changes) for team in teams]
    assert group.run(lambda team: trained(recoveries[team.rank])) == [alone] * size
    with torch.no_grad():
        next(iter(recoveries[-1].parameters.values())).add_(1)
    assert group.run(lambda team: refused(recoveries[team.rank].check_same)) == [True] * size
