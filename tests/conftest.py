"""Tiny models made in code, and where the shared data is, if it is there."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from pruning.export import verify_transformers
from tests.stock_python import StockPython
from workers.cluster.machine import LocalMachine
from workers.cluster.ray_session import local_ray

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
torch.set_num_threads(1)
# The same examples in every run, and none kept from one to the next.
settings.register_profile("repeatable", database=None, derandomize=True)
settings.load_profile("repeatable")

if torch.cuda.device_count() and "MULTIPRUNER_TEST_GPU" not in os.environ:
    # Everywhere the same tests: evaluators compute on CPUs, and Ray hands out eight GPUs by numbers
    # that no machine has.
    os.environ["CUDA_VISIBLE_DEVICES"] = "100,101,102,103,104,105,106,107"

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device and `make gpu-test`"
    ),
]

SIZES = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
OWN_SIZES: dict[str, dict[str, object]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": False},
    "gemma3_text": {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "final_logit_softcapping": 5.0,
    },
}


def tiny_config(model_type: str, **changes: object) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.for_model(
        model_type, **(SIZES | OWN_SIZES.get(model_type, {}) | changes)
    )
    return config


def tiny_model(config: PretrainedConfig) -> PreTrainedModel:
    """Random weights, norms and biases included, so that nothing holds by accident."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.float().eval()


def tokens(sequences: int = 3, length: int = 24, seed: int = 1, vocab: int = 128) -> torch.Tensor:
    return torch.randint(
        1, vocab, (sequences, length), generator=torch.Generator().manual_seed(seed)
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.one_ray import OneRay

    return OneRay(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those with tokens of their own before any Ray is started; and of several workers' tests the
    longest chain first, or one has nothing to do at the end.
    """
    from tests.one_ray import has_own_token, starts_ray

    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not starts_ray(item.path))
    items.sort(key=lambda item: not has_own_token(item.path))


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-llama"
    tiny_model(
        tiny_config("llama", head_dim=8, attention_bias=False, mlp_bias=False)
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 sequences of 32 tokens."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.safetensors"
    save_file({"input_ids": tokens(24, 32).numpy().astype(np.int64)}, path)
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared data folder. Tests that use it are marked `data`."""
    folder = Path(os.environ.get("MULTIPRUNER_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(
            "needs the shared data: a folder `shared` beside the checkout, or its path in "
            "MULTIPRUNER_SHARED"
        )
    return folder


@pytest.fixture(scope="session", autouse=True)
def stock_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exports are opened in forks of one Python; see `own_process`."""
    python = StockPython(tmp_path_factory.mktemp("stock"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_transformers, "subprocess", SimpleNamespace(run=python.run))
        yield
    python.stop()


@pytest.fixture
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are opened in a process that is started for it, as they are outside of the tests."""
    monkeypatch.setattr(verify_transformers, "subprocess", subprocess)


@pytest.fixture(scope="session")
def local_cluster() -> Iterator[LocalMachine]:
    """One real local Ray for all tests that need it: starting one takes seconds.

    Eight logical GPUs on any machine: pinning is Ray's, not CUDA's.
    """
    machine = LocalMachine(num_cpus=8, num_gpus=8, free_bytes=10**10)
    with local_ray(machine.num_cpus, machine.num_gpus):
        yield machine


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A command takes signals for as long as its process lives, which here is that of the tests."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
