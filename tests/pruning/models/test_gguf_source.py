"""GGUF files as the source of a model: which are converted anew, and what is none."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from pruning.errors import InputError
from pruning.models import gguf_source
from pruning.models.families import gguf_gaps
from tests.conftest import tiny_config


def test_a_gguf_is_converted_anew_by_another_converter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused today must not come from yesterday's cache."""
    (tmp_path / "a.gguf").write_bytes(b"x")
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_source, "_convert_gguf", lambda *_: None)
    folders = {gguf_source.converted_gguf(tmp_path / "a.gguf") for _ in range(2)}
    assert len(folders) == 1
    monkeypatch.setattr(gguf_source, "_CONVERTER", 0)
    folders.add(gguf_source.converted_gguf(tmp_path / "a.gguf"))
    monkeypatch.setattr(gguf_source, "version", lambda name: f"another {name}")
    folders.add(gguf_source.converted_gguf(tmp_path / "a.gguf"))
    assert len(folders) == 3


@pytest.mark.parametrize("content", [b"", b"a page of HTML", b"GGUF" + bytes(40)])
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^model\.path: .*a\.gguf is not a GGUF, or not a whole"):
        gguf_source._gaps(path)


def written(path: Path, architecture: str, *, tensor: str = "a", **scaling: str | float) -> Path:
    """A GGUF of one tensor, which says that of its rotary embedding."""
    writer = gguf.GGUFWriter(path, architecture)
    if "type" in scaling:
        writer.add_string(f"{architecture}.rope.scaling.type", scaling["type"])
    if "factor" in scaling:
        writer.add_float32(f"{architecture}.rope.scaling.factor", scaling["factor"])
    writer.add_tensor(tensor, np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "scaling", "factor"),
    [
        ("llama", {}, None),
        ("llama", {"type": "none"}, None),
        ("llama", {"type": "none", "factor": 8.0}, None),
        ("gemma3", {}, None),
        ("gemma3", {"type": "none", "factor": 8.0}, None),
        ("gemma3", {"type": "linear", "factor": 8.0}, 8.0),
    ],
)
def test_gaps_and_stretched_positions_of_a_gguf(
    architecture: str, scaling: dict[str, str | float], factor: float | None, tmp_path: Path
) -> None:
    """transformers reads all of a Llama, and not how Gemma 3 scales its attention."""
    gaps, found = gguf_source._gaps(written(tmp_path / "a.gguf", architecture, **scaling))
    assert (gaps is not None) is (architecture == "gemma3")
    assert gaps is None or gaps.architecture == architecture
    assert found == factor


@pytest.mark.parametrize(
    ("architecture", "scaling"),
    [
        ("llama", {"type": "linear", "factor": 8.0}),
        ("llama", {"type": "yarn"}),
        ("gemma3", {"type": "linear"}),
        ("gemma3", {"type": "yarn", "factor": 8.0}),
        ("gemma3", {"tensor": "rope_freqs.weight"}),
    ],
)
def test_a_rotary_embedding_that_would_be_lost_is_refused(
    architecture: str, scaling: dict[str, str | float], tmp_path: Path
) -> None:
    path = written(tmp_path / "a.gguf", architecture, **scaling)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="scales its rotary embedding, which cannot be converted"):
        gguf_source._gaps(path)


def test_gguf_of_gemma3_27b() -> None:
    """Its file differs in the number of layers alone, so many that transformers takes minutes to
    read a tiny one.
    """
    config = tiny_config(
        "gemma3_text",
        num_hidden_layers=62,
        layer_types=None,
        num_attention_heads=3,
        query_pre_attn_scalar=256,
    )
    gaps = gguf_gaps("gemma3")
    assert gaps is not None
    gaps.fill(config, 8.0)
    assert config.query_pre_attn_scalar == 16
    assert config.rope_parameters["full_attention"]["factor"] == 8
    assert config.rope_parameters["sliding_attention"]["rope_type"] == "default"


def test_gguf_of_a_smaller_gemma3() -> None:
    """Attention is scaled by the size of a head, and positions are left where they are."""
    config = tiny_config("gemma3_text", query_pre_attn_scalar=256)
    before = dict(config.rope_parameters["full_attention"])
    gaps = gguf_gaps("gemma3")
    assert gaps is not None
    gaps.fill(config, None)
    assert config.query_pre_attn_scalar == 8
    assert config.rope_parameters["full_attention"] == before
    assert gguf_gaps("llama") is None


def test_what_is_no_gguf(tmp_path: Path) -> None:
    """A folder of that suffix, a file that is not there, and one of another suffix."""
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "a.gguf").write_bytes(b"x")
    for name in ("folder.gguf", "none.gguf", "a.bin", "."):
        assert gguf_source.gguf_source(str(tmp_path / name)) is None
    assert gguf_source.gguf_source(str(tmp_path / "a.gguf")) == tmp_path / "a.gguf"


def test_package_that_is_not_there() -> None:
    with pytest.raises(InputError, match="'no_such_package', which ships a.gguf, is not installed"):
        gguf_source.gguf_source("package:no_such_package/a.gguf")
    with pytest.raises(InputError, match="'torch' has no file a.gguf"):
        gguf_source.gguf_source("package:torch/a.gguf")
