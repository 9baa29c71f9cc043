"""The training on Ray Train: what it comes to in this process, however many processes train."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from pruning.calibration.token_sets import Tokens
from pruning.errors import InputError
from pruning.importance.channel_order import ChannelOrder
from pruning.models.checkpoint import Checkpoint
from pruning.models.geometry import Geometry
from pruning.recovery.journal import JOURNAL, Line
from tests.conftest import tokens
from tests.pipelines.command import without_times
from tests.pruning.recovery.recoveries import NARROW, SETTINGS
from workers.cluster.machine import LocalMachine
from workers.cluster.placement import Placement
from workers.training.ray_training import train_on_ray
from workers.training.trainer import TrainingFailed, TrainingSpec, train

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ONE, TWO, MANY = (
    Placement(count, 0, 1, memory_bytes=0, start_timeout_s=60, stall_timeout_s=60)
    for count in (1, 2, None)
)
"""An update has two parts: of as many as fit, two train."""

LONG = replace(SETTINGS, steps=200)
"""Several seconds, so that a process can be killed in the middle."""


def of_tiny(folder: Path, text: Tokens | None = None) -> TrainingSpec:
    checkpoint = Checkpoint(folder)
    return TrainingSpec(
        checkpoint,
        "float32",
        NARROW.text,
        ChannelOrder.as_stored(Geometry.of(checkpoint.config())),
        SETTINGS,
        tokens(10, 24).numpy() if text is None else text,
        tokens(5, 24, seed=2).numpy(),
    )


def processes() -> list[psutil.Process]:
    """That train, of this test alone."""
    return [
        each
        for each in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(each.cmdline())
    ]


@pytest.mark.parametrize(("placement", "count", "killed"), [(ONE, 1, 0), (MANY, 2, 1)])
def test_a_process_that_is_killed_is_started_again(
    placement: Placement,
    count: int,
    killed: int,
    local_cluster: LocalMachine,
    checkpoint_folder: Path,
    tmp_path: Path,
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    spec = replace(of_tiny(checkpoint_folder), settings=LONG)
    assert train(spec, here, lambda *_: None) == "steps"
    told: list[int] = []
    killed_at: list[int] = []

    def watch(lines: Sequence[Line], num_saved: int) -> None:
        if num_saved > 1 and not killed_at:
            found = processes()
            assert len(found) == count
            os.kill(found[killed].pid, signal.SIGKILL)
            killed_at.append(len(lines))
        told.append(len(lines))
        assert num_saved <= len(lines)

    assert train_on_ray(spec, there, watch, placement) == "steps"
    assert killed_at[0] <= LONG.steps, "it was over before"
    assert told[-1] == LONG.steps + 1
    assert without_times(there / JOURNAL) == without_times(here / JOURNAL)
    last = "checkpoints/step-000200.safetensors"
    assert (there / last).read_bytes() == (here / last).read_bytes()
    assert [path.name for path in there.glob(".ray-*")] == []


def test_what_is_wrong_is_said_as_in_this_process(
    local_cluster: LocalMachine, checkpoint_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / JOURNAL).write_text(json.dumps({"step": 4}) + "\n")
    with pytest.raises(InputError, match="recovery.jsonl is damaged: its steps are not 0, 1, 2"):
        train_on_ray(of_tiny(checkpoint_folder), tmp_path, lambda *_: None, TWO)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (
            Placement(1, 99, 1, stall_timeout_s=3),
            "each asks for 99 GPU and 1 CPU; 1 node offers 8 GPU",
        ),
        (
            Placement(2, 0, 1, label_selector={"kind": "new"}, stall_timeout_s=3),
            "each asks for 0 GPU and 1 CPU on a node with kind: new; nodes have",
        ),
    ],
)
def test_who_gets_no_place_is_told(
    placement: Placement,
    message: str,
    local_cluster: LocalMachine,
    checkpoint_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And waits no longer than asked. What a driver that was killed has left goes."""
    (tmp_path / ".ray-killed").mkdir()
    with pytest.raises(TrainingFailed, match=r"^no evaluator for 3 s \(cluster.stall_timeout_s\)"):
        train_on_ray(of_tiny(checkpoint_folder), tmp_path, lambda *_: None, placement)
    [record] = [each for each in caplog.records if "no node can take" in each.message]
    assert message in record.message
    assert not list(tmp_path.glob(".ray-*"))
