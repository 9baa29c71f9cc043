"""Floating-point types by name, and what the CPU computes natively."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pruning.models import dtypes
from pruning.models.dtypes import NUM_BYTES, resolve_dtype


def test_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_dtype("float16", on_gpu=False) == "float16"
    assert resolve_dtype("auto", on_gpu=True) == "bfloat16"
    for features, dtype in (({"avx2"}, "float32"), ({"avx2", "avx512_bf16"}, "bfloat16")):
        monkeypatch.setattr(dtypes, "cpu_features", lambda found=features: frozenset(found))
        assert resolve_dtype("auto", on_gpu=False) == dtype


def test_bytes_of_a_value_are_those_of_torch() -> None:
    assert {name: getattr(torch, name).itemsize for name in NUM_BYTES} == NUM_BYTES
    assert {"auto", *NUM_BYTES} == set(dtypes.DTYPES)


def test_the_features_of_the_cpu_are_those_that_torch_finds() -> None:
    names = ("avx2", "avx512_bf16", "amx_bf16", "bf16")
    found, torchs = dtypes.cpu_features(), torch.cpu.get_capabilities()
    assert [name in found for name in names] == [bool(torchs.get(name)) for name in names]


@pytest.mark.parametrize(
    ("platform", "expected"), [("linux", {"avx2", "bf16"}), ("darwin", {"arm_bf16"})]
)
def test_on_linux_the_kernel_is_asked_and_elsewhere_torch(
    platform: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever bytes the vendor's name of the CPU has."""

    def listed(path: Path, encoding: str, errors: str = "strict") -> str:
        assert path == Path("/proc/cpuinfo")
        return b"flags : avx2 bf16\nname : \xae".decode(encoding, errors)

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "read_text", listed)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"arm_bf16": True})
    assert dtypes.cpu_features() & {"avx2", "bf16", "amx_bf16", "arm_bf16"} == expected


def test_where_the_kernel_lists_no_features_torch_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in containers without /proc."""

    def hidden(path: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", hidden)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False})
    assert dtypes.cpu_features() == {"avx2"}
