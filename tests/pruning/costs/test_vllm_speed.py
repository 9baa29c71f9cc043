"""Speeds in vLLM: what is asked of it, by an engine of our own. `make vllm-test` asks vLLM."""

from __future__ import annotations

import io
import json
import os
import runpy
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pruning.costs import vllm_program, vllm_speed
from pruning.costs.speed import SpeedSettings
from pruning.costs.vllm_speed import PYTHON_VARIABLE, vllm_python
from pruning.errors import InputError

Asked = list[tuple[str, tuple[tuple[int, ...], ...], int]]

QUESTION: dict[str, Any] = {
    "models": {"dense": "d", "pruned": "p"},
    "batch_size": 2,
    "prompt_tokens": 4,
    "new_tokens": 3,
    "rounds": 3,
    "seed": 0,
    "vocab_size": 50,
    "num_threads": 1,
    "dtype": "float32",
    "cache_bytes": 3 * 2**30,
}


shares: dict[str, float] = {}
"""Of a GPU's memory, by model: what the engine was told last."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What is generated, by an engine that takes a second for a prompt and two for a token."""
    log: Asked = []
    shares.clear()
    clock = SimpleNamespace(now=0.0)

    class LLM:
        def __init__(self, model: str, **options: Any) -> None:
            assert options["max_model_len"] == 4 + 1 + 3
            assert not options["enable_prefix_caching"], "prompts come again and again"
            assert options["skip_tokenizer_init"], "folders may have none"
            shares[model] = options["gpu_memory_utilization"]
            assert options["dtype"] == "float32"
            assert options["trust_remote_code"] == model.endswith("decilm")
            self.name = model

        def generate(self, prompts: Any, sampling: Any, *, use_tqdm: bool) -> None:
            assert not use_tqdm
            assert (sampling.temperature, sampling.ignore_eos) == (0, True)
            assert not sampling.detokenize, "there is no tokenizer"
            tokens = tuple(tuple(each["prompt_token_ids"]) for each in prompts)
            log.append((self.name, tokens, sampling.max_tokens))
            clock.now += 1 + 2 * (sampling.max_tokens - 1)

    module = SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace, __version__="0.1")
    monkeypatch.setitem(sys.modules, "vllm", module)
    platform = SimpleNamespace(device_type="cuda", get_device_name=lambda: "NVIDIA of a test")
    platforms = SimpleNamespace(current_platform=platform)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.setattr(vllm_program.time, "perf_counter", lambda: clock.now)
    return log


def test_models_take_turns_with_the_same_tokens_after_a_run_that_is_not_timed(asked: Asked) -> None:
    assert vllm_program._main(QUESTION) == {"dense": [(1, 6)] * 3, "pruned": [(1, 6)] * 3}
    assert [name for name, *_ in asked[::2]] == list("dpdppddp")
    assert [name for name, *_ in asked[1::2]] == list("dpdppddp")
    assert [num_tokens for *_, num_tokens in asked] == [1, 4] * 8
    [prompts] = {tokens for _, tokens, _ in asked}
    assert [len(prompt) for prompt in prompts] == [4, 4]
    assert prompts[0] != prompts[1]
    assert all(0 <= token < 50 for prompt in prompts for token in prompt)


def test_models_share_the_memory_of_a_gpu_by_their_weights(asked: Asked, tmp_path: Path) -> None:
    """No model gets more than a third, as where the second is in memory with the dense one."""
    sizes = {"dense": (300, 300), "half": (300,), "tenth": (60,), "none": ()}
    for name, files in sizes.items():
        (tmp_path / name).mkdir()
        for number, size in enumerate(files):
            (tmp_path / name / f"{number}.safetensors").write_bytes(bytes(size))
        (tmp_path / name / "other").write_bytes(bytes(999))
    models = {name: str(tmp_path / name) for name in sizes}
    vllm_program._main(QUESTION | {"models": models})
    found = {Path(path).name: share for path, share in shares.items()}
    assert found == {
        "dense": 0.33,
        "half": pytest.approx(0.9 * 300 / 960),
        "tenth": pytest.approx(0.9 * 60 / 960),
        "none": 0.02,
    }


def test_a_slow_first_answer_is_none_of_the_rounds(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = vllm_program.time.perf_counter

    def slow_at_first() -> float:
        return clock() + (1000 if len(asked) > 1 else 0)

    monkeypatch.setattr(vllm_program.time, "perf_counter", slow_at_first)
    assert vllm_program._main(QUESTION)["dense"] == [(1, 6)] * 3


def test_only_folders_of_decilm_bring_code_that_is_trusted(asked: Asked, tmp_path: Path) -> None:
    """The engine's `trust_remote_code` goes by the name of the folder."""
    paths = {name: tmp_path / name for name in ("llama", "decilm")}
    for path in paths.values():
        path.mkdir()
    (paths["decilm"] / "configuration_decilm.py").write_text("")
    models = {"dense": str(paths["llama"]), "pruned": str(paths["decilm"])}
    vllm_program._main(QUESTION | {"models": models})
    assert {name for name, *_ in asked} == set(models.values())


def test_decoding_that_took_little_time_is_a_number(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = vllm_program.time.perf_counter
    monkeypatch.setattr(vllm_program.time, "perf_counter", lambda: clock() / 8)
    assert vllm_program._main(QUESTION)["pruned"] == [(0.125, 0.75)] * 3


def test_a_program_reads_what_to_do_and_writes_seconds(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In an environment that says where vLLM listens, and nothing else."""
    answer = tmp_path / "seconds.json"
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdin", io.StringIO(json.dumps(QUESTION)))
        patched.setattr(sys, "argv", ["program", str(answer)])
        patched.setattr(os, "environ", {"VLLM_HOST_IP": "10.0.0.1"})
        patched.delitem(sys.modules, vllm_program.__name__)
        runpy.run_module(vllm_program.__name__, run_name="__main__")
        environment = dict(os.environ)
    assert json.loads(answer.read_text()) == {
        "version": "vLLM 0.1",
        "device": "cuda NVIDIA of a test",
        "seconds": {"dense": [[1, 6]] * 3, "pruned": [[1, 6]] * 3},
    }
    assert environment["VLLM_HOST_IP"] == "10.0.0.1"
    assert (environment["HF_HUB_OFFLINE"], environment["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "4", (
        "GiB, whole ones, no less than is asked for"
    )
    interfaces = {name for _, name in socket.if_nameindex()}
    assert environment["GLOO_SOCKET_IFNAME"] in interfaces & {"lo", "lo0"}


def test_decoding_that_took_no_time_is_no_number(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_program.time, "perf_counter", lambda: float(len(asked)))
    with pytest.raises(RuntimeError, match="3 new tokens took no longer than none"):
        vllm_program._main(QUESTION)
    assert len(asked) == 4 + 2, "the first two of each model are not timed"


def python(folder: Path, status: int) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


def test_which_python_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(vllm_speed.sys, "executable", python(tmp_path, 1))
    with pytest.raises(InputError, match="^vLLM is not installed here; install it, or give"):
        vllm_python()
    monkeypatch.setattr(vllm_speed.sys, "executable", python(tmp_path, 0))
    assert vllm_python() == str(tmp_path / "python")
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "far"))
    with pytest.raises(InputError, match=f"^{PYTHON_VARIABLE}: cannot run .*/far: No such file"):
        vllm_python()
    (tmp_path / "other").mkdir()
    monkeypatch.setenv(PYTHON_VARIABLE, python(tmp_path / "other", 1))
    with pytest.raises(InputError, match=f"^{PYTHON_VARIABLE}: .*/other/python has no vLLM"):
        vllm_python()


def test_what_a_python_says_is_not_for_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = Path(python(tmp_path, 0))
    path.write_text("#!/bin/sh\necho a warning\necho another >&2\n")
    monkeypatch.setenv(PYTHON_VARIABLE, str(path))
    assert vllm_python() == str(path)
    assert capfd.readouterr() == ("", "")


def test_the_python_that_has_it_runs_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here one that writes down its question and has an answer."""
    path = tmp_path / "python"
    path.write_text(
        f"""#!/bin/sh
[ "$2" = -c ] && exit 0
echo "$2" > {tmp_path}/program
cat > {tmp_path}/question
echo '{{"version": "v", "device": "d", "seconds": {{"dense": [[2, 1], [2, 1]]}}}}' > "$3"
"""
    )
    path.chmod(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, str(path))
    settings = SpeedSettings(batch_size=2, prompt_tokens=4, new_tokens=3, rounds=2)
    (tmp_path / "model").mkdir()
    found = vllm_speed.vllm_runs(
        {"dense": tmp_path / "model"}, settings, vocab_size=50, num_threads=3, dtype="bfloat16"
    )
    assert found.seconds == {"dense": [[2, 1], [2, 1]]}
    assert (tmp_path / "program").read_text().strip() == vllm_program.__file__
    asked = json.loads((tmp_path / "question").read_text())
    assert (asked["vocab_size"], asked["num_threads"], asked["dtype"]) == (50, 3, "bfloat16")
