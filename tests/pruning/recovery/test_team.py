"""Processes that train together: what one of them alone would come to, bit by bit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from pruning.errors import InputError
from pruning.recovery.team import Team
from pruning.recovery.training import Recovery
from tests.pruning.recovery.recoveries import dense_model, recovery_of

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
CHANGES = {"batch_size": 5, "micro_batch_size": 1, "dropout": 0.1}
"""Five parts of an update, and five of the held-out text: shares of 2 and 3, or of 1, 2 and 2."""


@pytest.mark.parametrize("num_parts", [1, 5, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_part_has_one_process_and_none_has_two_more_than_another(
    size: int, num_parts: int
) -> None:
    shares = [Team(rank, size).share(num_parts) for rank in range(size)]
    assert [part for share in shares for part in share] == list(range(num_parts))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def trained(folder: Path, rank: int | None, team: Team) -> None:
    """Writes two updates, their state and held-out NLLs."""
    torch.set_num_threads(1)
    recovery = recovery_of(dense_model(), team=team, rank=rank, **CHANGES)
    found: list[object] = [recovery.dense_nll(), recovery.heldout_nll()]
    for step in (1, 2):
        update = recovery.update(step)
        assert update is not None
        found += [update.loss, update.grad_norm]
    found.append(recovery.heldout_nll())
    found.append(team.told_by_first(["first"] if team.rank == 0 else None))
    recovery.check_same()
    (folder / f"{team.rank}.json").write_text(json.dumps(found))
    recovery.save(folder / f"{team.rank}.safetensors", 2)
    if team.size > 1:
        apart(recovery, team)


@torch.no_grad()
def apart(recovery: Recovery, team: Team) -> None:
    """The last process has the last bit of one value otherwise."""
    if team.rank == team.size - 1:
        weight = next(iter(recovery.parameters.values()))
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    with pytest.raises(InputError, match="no longer have the same weights"):
        recovery.check_same()


def member(rank: int, size: int, folder: Path, adapters: int | None) -> None:
    """One process of a team."""
    group = f"file://{folder / 'group'}"
    distributed.init_process_group("gloo", init_method=group, rank=rank, world_size=size)
    trained(folder, adapters, Team(rank, size))
    distributed.destroy_process_group()


@pytest.mark.parametrize(("size", "rank"), [(2, 4), (3, 4), (2, None)])
def test_any_number_of_processes_trains_the_same(
    size: int, rank: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", LOOPBACK)
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    threads = torch.get_num_threads()
    try:
        trained(alone, rank, Team())
    finally:
        torch.set_num_threads(threads)
    multiprocessing.spawn(member, (size, together, rank), size)
    for each in range(size):
        for kind in ("json", "safetensors"):
            found, wanted = together / f"{each}.{kind}", alone / f"0.{kind}"
            assert found.read_bytes() == wanted.read_bytes(), (each, kind)
