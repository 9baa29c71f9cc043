"""What decides the last digits of a result, as the process that computes it says."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import transformers

from pruning.models.checkpoint import Checkpoint
from pruning.scoring import arithmetic
from pruning.scoring.arithmetic import SCORING_VERSION, VARIABLES, Arithmetic
from pruning.scoring.nll import HEAD_CHUNK_TOKENS
from tests.conftest import tiny_config, tiny_model

EXAMPLE = Arithmetic(
    device="cpu AVX512",
    num_threads=2,
    processor="model name A",
    torch="2.13.0+cpu",
    transformers="5.23.0",
    scoring="1, 128 tokens",
    attention="sdpa",
    precision="highest",
    variables="MKL_CBWR=COMPATIBLE",
    code="c0de",
)


@pytest.mark.parametrize("name", [field.name for field in fields(Arithmetic)])
def test_every_field_counts(name: str) -> None:
    changed = replace(EXAMPLE, **{name: 3 if name == "num_threads" else ""})
    assert changed.digest != EXAMPLE.digest
    [difference] = EXAMPLE.differences(changed)
    assert difference.startswith(f"{name}: {getattr(EXAMPLE, name)}, ")
    assert EXAMPLE.differences(EXAMPLE) == []


def test_it_says_what_this_process_computes_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    found = Arithmetic.of(tiny_model(tiny_config("llama")))
    assert found.device == f"cpu {torch.backends.cpu.get_cpu_capability()}"
    assert found.num_threads == torch.get_num_threads()
    assert (found.torch, found.transformers) == (torch.__version__, transformers.__version__)
    assert (found.scoring, found.attention) == ("2, 128 tokens", "sdpa")
    assert (found.precision, found.variables, found.code) == ("highest", "", "")
    assert found.processor


@pytest.mark.parametrize("name", VARIABLES)
def test_variables_count(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model = tiny_model(tiny_config("llama"))
    monkeypatch.delenv(name, raising=False)
    before = Arithmetic.of(model)
    monkeypatch.setenv(name, "1")
    assert f"{name}=1" in Arithmetic.of(model).variables
    assert Arithmetic.of(model).digest != before.digest


def test_how_we_compute_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tiny_config("llama"))
    before = Arithmetic.of(model)
    monkeypatch.setattr(arithmetic, "SCORING_VERSION", SCORING_VERSION + 1)
    second = Arithmetic.of(model)
    monkeypatch.setitem(HEAD_CHUNK_TOKENS, "cpu", 64)
    third = Arithmetic.of(model)
    model.set_attn_implementation("eager")
    assert len({each.digest for each in (before, second, third, Arithmetic.of(model))}) == 4


def test_the_model_of_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two with the same instructions are told apart."""
    text = "processor\t: {}\nvendor_id\t: V\ncpu family\t: 6\nmodel\t\t: {}\nflags\t\t: avx2\n\n"
    found = []
    for model in (143, 207):
        path = tmp_path / str(model)
        path.write_text(text.format(0, model) + text.format(1, 1))
        monkeypatch.setattr(arithmetic, "_CPUINFO", path)
        arithmetic.processor_name.cache_clear()
        found.append(arithmetic.processor_name())
    arithmetic.processor_name.cache_clear()
    assert found == ["vendor_id V, cpu family 6, model 143", "vendor_id V, cpu family 6, model 207"]


def test_code_that_comes_with_the_model_counts(tmp_path: Path) -> None:
    """Wherever transformers has put it."""
    digests = set()
    for number in range(2):
        folder = tmp_path / f"own{number}"
        tiny_model(tiny_config("llama")).save_pretrained(folder)
        (folder / "modeling_own.py").write_text(
            "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
            "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n\n\n"
            f"class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n    number = {number}\n"
        )
        config = tiny_config("llama").to_dict() | {
            "model_type": "own",
            "auto_map": {
                "AutoConfig": "modeling_own.OwnConfig",
                "AutoModelForCausalLM": "modeling_own.Own",
            },
        }
        (folder / "config.json").write_text(json.dumps(config, default=str))
        model = Checkpoint(folder, trust_remote_code=True).load(dtype="float32")
        digests.add(Arithmetic.of(model).code)
    assert len(digests) == 2
    assert {len(digest) for digest in digests} == {32}


def test_the_digest_is_of_all_fields_in_the_order_of_their_names() -> None:
    """It is stored with scores, so that it must stay what it is."""
    values = {field.name: getattr(EXAMPLE, field.name) for field in fields(Arithmetic)}
    assert EXAMPLE.to_json() == values
    text = json.dumps(dict(sorted(values.items())))
    assert EXAMPLE.digest == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_value_that_is_empty_is_called_none() -> None:
    without = replace(EXAMPLE, code="")
    assert EXAMPLE.differences(without) == ["code: c0de, none"]
    assert without.differences(EXAMPLE) == ["code: none, c0de"]


@pytest.mark.parametrize(
    ("text", "known", "expected"),
    [
        (None, "i386 of Apple", "i386 of Apple"),
        (None, "", "arm64"),
        ("processor\t: 0\nflags\t\t: avx2\n", "i386 of Apple", "arm64"),
    ],
)
def test_a_processor_without_a_model_is_called_as_python_calls_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
    known: str,
    expected: str,
) -> None:
    """Where there is no such file, or it says nothing of a model."""
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(arithmetic, "_CPUINFO", path)
    monkeypatch.setattr(platform, "processor", lambda: known)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    arithmetic.processor_name.cache_clear()
    found = arithmetic.processor_name()
    arithmetic.processor_name.cache_clear()
    assert found == expected


def test_this_machine_is_told_by_the_kind_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else an arithmetic says stays as it is there."""
    there = {"device": "cpu of a test", "processor": "a test's", "num_threads": 9, "engine": "e"}
    here = arithmetic.this_machine(there, 2)
    assert here == {
        "device": f"cpu {torch.backends.cpu.get_cpu_capability()}",
        "processor": arithmetic.processor_name(),
        "num_threads": 2,
        "engine": "e",
    }
    on_gpu = {"device": "cuda NVIDIA", "processor": ""}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert arithmetic.this_machine(on_gpu, 2)["device"] == "none"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "AMD")
    here = arithmetic.this_machine(on_gpu, 2)
    assert (here["device"], here["processor"]) == ("cuda AMD", "")
