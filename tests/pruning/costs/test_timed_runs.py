"""Runs with a clock, of models made by hand that answer each token with the next one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.costs import timed_runs as module
from pruning.costs.speed import SpeedSettings
from pruning.costs.timed_runs import TimedRun, gpus_of, timed_run, timed_runs
from pruning.errors import ScoringError

SETTINGS = SpeedSettings(batch_size=2, prompt_tokens=5, new_tokens=3, rounds=3, seed=4)


class Counter(nn.Module):
    """A token's successor is its number plus one. The cache holds 3 heads of 4 channels, of all
    tokens.
    """

    def __init__(self, vocabulary: int = 50, name: str = "") -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 1)
        self.name = name
        self.asked: list[dict[str, Any]] = []

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, input_ids: torch.Tensor, **options: Any) -> SimpleNamespace:
        self.asked.append({"input_ids": input_ids} | options)
        cache = options.get("past_key_values")
        length = input_ids.shape[1] + (0 if cache is None else cache.layers[0].keys.shape[2])
        held = torch.zeros(input_ids.shape[0], 3, length, 4)
        logits = nn.functional.one_hot(input_ids + 1, len(self.embedding.weight) + 1)
        layer = SimpleNamespace(keys=held, values=held)
        return SimpleNamespace(
            logits=logits.float(), past_key_values=SimpleNamespace(layers=[layer, layer])
        )


class Brief(Counter):
    """Gives as many logits as are asked for."""

    def forward(
        self, input_ids: torch.Tensor, *, logits_to_keep: int = 0, **options: Any
    ) -> SimpleNamespace:
        found = super().forward(input_ids, logits_to_keep=logits_to_keep, **options)
        found.logits = found.logits[:, -logits_to_keep:]
        return found


def ran(model: Counter, prompt: torch.Tensor, new_tokens: int = 3, **given: Any) -> TimedRun:
    clock: Callable[[], float] = given.get("clock", count(0.0).__next__)
    return timed_run(cast("PreTrainedModel", model), prompt, new_tokens, clock)


def timed(*models: Counter, settings: SpeedSettings = SETTINGS) -> dict[str, list[TimedRun]]:
    named = {model.name: cast("PreTrainedModel", model) for model in models}
    return timed_runs(named, settings, clock=count(0.0).__next__)


@pytest.mark.parametrize("kind", [Counter, Brief])
def test_tokens_follow_from_the_last_of_the_prompt_one_at_a_time(kind: type[Counter]) -> None:
    model, prompt = kind(), torch.tensor([[7, 3, 9], [1, 8, 20]])
    run = ran(model, prompt)
    assert run.tokens.tolist() == [[10, 11, 12, 13], [21, 22, 23, 24]]
    assert [each["input_ids"].tolist() for each in model.asked] == [
        prompt.tolist(), [[10], [21]], [[11], [22]], [[12], [23]]
    ]  # fmt: skip
    assert all(each["use_cache"] for each in model.asked)
    kept = [each.get("logits_to_keep") for each in model.asked]
    assert kept == [1 if kind is Brief else None] * 4, "no others than are read"
    assert run.kv_cache_bytes_per_token == 2 * 2 * 3 * 4 * 4
    assert run.kv_cache_bytes == 2 * 6 * run.kv_cache_bytes_per_token
    assert (run.prefill_s, run.decode_s) == (1, 1)


def test_all_runs_read_the_same_random_tokens_that_all_models_know() -> None:
    def prompts(seed: int) -> set[tuple[int, ...]]:
        models = Counter(50, "wide"), Counter(20, "narrow")
        settings = SpeedSettings(2, 5, 3, 3, seed)
        assert all(len(runs) == 3 for runs in timed(*models, settings=settings).values())
        asked = [each["input_ids"] for model in models for each in model.asked]
        found = {tuple(ids.flatten().tolist()) for ids in asked if ids.shape == (2, 5)}
        assert sum(ids.shape == (2, 5) for ids in asked) == 2 * (1 + 3), "one is not timed"
        return found

    [first], [again], [other] = prompts(4), prompts(4), prompts(5)
    assert first == again != other
    assert 0 <= min(first + other) <= max(first + other) < 20
    assert len(set(first)) > 2


def test_the_order_is_turned_round_from_round_to_round(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(module, "timed_run", lambda model, **_: ran.append(model.name))
    timed(*(Counter(50, name) for name in "abc"), settings=SpeedSettings(1, 1, 1, 4))
    assert "".join(ran) == "abc" + "abc" + "cba" + "abc" + "cba"


class Forgetful(Counter):
    """Keeps nothing of earlier tokens."""

    def forward(self, input_ids: torch.Tensor, **options: Any) -> SimpleNamespace:
        found = super().forward(input_ids, **options)
        found.past_key_values = None
        return found


def test_a_model_that_returns_no_cache_is_refused() -> None:
    with pytest.raises(ScoringError, match="^Forgetful returns NoneType for past_key_values; exp"):
        ran(Forgetful(), torch.ones(1, 4, dtype=torch.long))


class Gpus:
    """Two of them, which compute later: when they are waited for, each forward takes a second. The
    memory of each is 100 bytes before, 170 at most in a run, and 900 in what was before.
    """

    def __init__(self) -> None:
        self.now, self.waiting = 0.0, 5.0
        self.peaks = {0: 900, 1: 900}

    def synchronize(self, gpu: int) -> None:
        if gpu == 1:
            self.now, self.waiting = self.now + self.waiting, 0.0

    def reset_peak_memory_stats(self, gpu: int) -> None:
        self.peaks[gpu] = 170

    def memory_allocated(self, gpu: int) -> int:
        return 100

    def max_memory_allocated(self, gpu: int) -> int:
        return self.peaks[gpu]


def test_gpus_are_waited_for_and_their_memory_is_that_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus, model = Gpus(), Counter()
    for name in (
        "synchronize", "reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, getattr(gpus, name))
    monkeypatch.setattr(module, "gpus_of", lambda _: [0, 1])

    def launched(*_: object) -> None:
        gpus.waiting += 1

    model.register_forward_pre_hook(launched)
    run = ran(model, torch.ones(1, 4, dtype=torch.long), clock=lambda: gpus.now)
    assert (run.prefill_s, run.decode_s) == (1, 3)
    assert run.peak_above_bytes == 2 * (170 - 100)


def test_gpus_of_a_model_are_listed_once_each_in_order() -> None:
    devices = ["cuda:1", "cpu", "cuda:0", "cuda:1"]
    parameters = [
        SimpleNamespace(device=torch.device(each), is_cuda=each != "cpu") for each in devices
    ]
    model: Any = SimpleNamespace(parameters=lambda: parameters)
    assert gpus_of(model) == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert gpus_of(cast("PreTrainedModel", Counter())) == []


@pytest.mark.parametrize(
    ("shape", "per_token"),
    [
        ((2, 1, 6, 2), 8),
        ((2, 2, 6, 1), 8),
        ((2, 1, 6, 1), 0),
        ((2, 3, 0, 4), 0),
        ((2, 8, 6, 1), 32),
    ],
    ids=["two channels", "two heads", "a number for each token", "no tokens", "eight heads"],
)
def test_a_cache_of_numbers_that_are_neither_keys_nor_values(
    shape: tuple[int, ...], per_token: int
) -> None:
    """Beside a layer that has none: what stands in the place of an attention does not count."""
    layers = [SimpleNamespace(), SimpleNamespace(keys=torch.zeros(shape), values=None)]
    cache = SimpleNamespace(layers=layers)
    found = module._cache_bytes(cast("PreTrainedModel", Counter()), cache, 2)
    assert found == (per_token, per_token * 2 * 6)
