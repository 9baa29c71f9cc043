"""vLLM itself serves DeciLM folders, and plain checkpoints with its own classes: `make vllm-test`,
which installs its CPU build beside this project's environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from pruning.costs.engine_speed import EngineComparison
from pruning.costs.speed import SpeedSettings
from pruning.costs.vllm_speed import PYTHON_VARIABLE, vllm_runs
from pruning.export import decilm, transformers
from pruning.export.source import ExportSource
from pruning.models.loaded_model import LoadedModel
from pruning.shape import ModelShape
from tests.conftest import ROOT, tiny_config, tiny_model, tokens
from tests.pruning.export.gguf_models import LLAMA3_ROPE
from tests.pruning.export.sources import masked_logits, smollm2_source
from tests.pruning.export.test_export import HARD

pytestmark = pytest.mark.vllm

NUM_TOKENS = 24
TINY: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3_ROPE}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
}


@pytest.fixture(scope="module")
def vllm_python() -> Path:
    path = Path(os.environ.get(PYTHON_VARIABLE, ROOT / ".cache/vllm/bin/python"))
    if not path.is_file():
        pytest.skip(
            "needs vLLM in an environment of its own: `make vllm-test` makes it, or "
            f"{PYTHON_VARIABLE} names its Python"
        )
    return path


def serve(python: Path, folder: Path, prompt: list[int]) -> dict[str, Any]:
    question = json.dumps({"folder": str(folder), "prompt": prompt, "num_tokens": NUM_TOKENS})
    mine = {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | mine
    script = Path(__file__).with_name("serve_with_vllm.py")
    answer = folder / "answer.json"
    done = subprocess.run(
        [python, "-I", script, answer],
        input=question,
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    served: dict[str, Any] = json.loads(answer.read_text())
    return served


def check(python: Path, source: ExportSource, folder: Path, prompt: list[int]) -> None:
    """24 greedy tokens of the folder are ours, and every log-probability within 1e-4."""
    served = serve(python, folder, prompt)
    whole = torch.tensor([prompt + served["tokens"]])
    logits_TV = masked_logits(source, whole)[0, :-1]
    logprobs_TV = torch.log_softmax(logits_TV.double(), dim=-1)
    ours = logprobs_TV.gather(1, whole[0, 1:, None])[:, 0]
    apart = (torch.tensor(served["logprobs"], dtype=torch.float64) - ours).abs().max().item()
    sys.stdout.write(
        f"{source.dense.model.config.model_type} {source.shape.text}: {NUM_TOKENS} tokens, "
        f"log-probabilities apart by {apart:.1e}\n"
    )
    assert logprobs_TV[len(prompt) - 1 :].argmax(dim=-1).tolist() == served["tokens"]
    assert apart < 1e-4


@pytest.mark.parametrize("name", TINY)
def test_hard_shapes(name: str, vllm_python: Path, tmp_path: Path) -> None:
    """Layer 0 without attention, one KV head of three, halves that pair, MLP widths such as 5.
    vLLM's kernels start at heads of 32.
    """
    model_type, changes = TINY[name]
    config = tiny_config(model_type, num_hidden_layers=6, hidden_size=96, head_dim=32, **changes)
    source = ExportSource(LoadedModel.of(tiny_model(config)), HARD, tmp_path, torch.float32)
    decilm.write(tmp_path, source)
    check(vllm_python, source, tmp_path, tokens(1, 20)[0].tolist())


@pytest.mark.parametrize("name", TINY)
def test_plain_checkpoints(name: str, vllm_python: Path, tmp_path: Path) -> None:
    """One width, fewer layers and, where the family has a head size, fewer heads, served by vLLM's
    own class of the family. Six heads of 32, as it derives them for Qwen2.
    """
    model_type, changes = TINY[name]
    config = tiny_config(model_type, num_hidden_layers=6, hidden_size=192, head_dim=32, **changes)
    shape = ModelShape.parse({"llama": "2x24*2 0x0 2x24*3", "qwen2": "3x24*2 0x0 3x24*3"}[name])
    source = ExportSource(LoadedModel.of(tiny_model(config)), shape, tmp_path, torch.float32)
    transformers.write(tmp_path, source)
    assert not list(tmp_path.glob("*.py"))
    check(vllm_python, source, tmp_path, tokens(1, 20)[0].tolist())


def test_speeds_of_two_models_in_turns(
    vllm_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain checkpoint and a DeciLM folder, in vLLM together. Times are never asserted."""
    monkeypatch.setenv(PYTHON_VARIABLE, str(vllm_python))
    config = tiny_config("llama", num_hidden_layers=6, hidden_size=96, head_dim=32)
    dense = LoadedModel.of(tiny_model(config))
    folders: dict[str, Path] = {"dense": tmp_path / "dense", "pruned": tmp_path / "pruned"}
    for folder in folders.values():
        folder.mkdir()
    shape = dense.geometry.dense
    transformers.write(folders["dense"], ExportSource(dense, shape, tmp_path, torch.float32))
    decilm.write(folders["pruned"], ExportSource(dense, HARD, tmp_path, torch.float32))
    settings = SpeedSettings(batch_size=2, prompt_tokens=16, new_tokens=16, rounds=2)
    runs = vllm_runs(folders, settings, vocab_size=128, num_threads=1, dtype="float32")
    assert runs.version.startswith("vLLM 0.")
    assert runs.device == "cpu" or runs.device.startswith("cuda ")
    found = EngineComparison.of(runs.seconds, settings, num_threads=1)
    assert found.ratio is not None
    for speed in (found.dense, found.pruned, found.ratio):
        assert speed is not None
        assert 0 < speed.prefill_tokens_per_s.lowest <= speed.prefill_tokens_per_s.highest
        assert 0 < speed.decode_tokens_per_s.lowest <= speed.decode_tokens_per_s.highest
    with pytest.raises(RuntimeError, match="vLLM cannot run nothing"):
        vllm_runs(
            {"dense": tmp_path / "nothing"}, settings, vocab_size=9, num_threads=1, dtype="float32"
        )


@pytest.mark.data
def test_smollm2(vllm_python: Path, tmp_path: Path) -> None:
    source = smollm2_source()
    decilm.write(tmp_path, source)
    tokenizer = AutoTokenizer.from_pretrained(source.tokenizer_folder)
    check(
        vllm_python,
        source,
        tmp_path,
        tokenizer(
            "The capital of France is Paris. The largest planet of the solar system is"
        ).input_ids,
    )
