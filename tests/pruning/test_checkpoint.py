from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pruning.checkpoint import cache_folder, find_checkpoint, resolve_dtype
from pruning.errors import InputError
from tests.conftest import tiny_config, tiny_model, tokens


@pytest.fixture
def folder(tmp_path: Path, checkpoint_folder: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "model"))


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_load(checkpoint_folder: Path) -> None:
    model = find_checkpoint(str(checkpoint_folder)).load(dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_fingerprint_is_of_the_content(folder: Path, checkpoint_folder: Path) -> None:
    before = find_checkpoint(str(checkpoint_folder)).fingerprint()
    assert find_checkpoint(str(folder)).fingerprint() == before
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert find_checkpoint(str(folder)).fingerprint() != before


def test_no_such_folder_and_no_network() -> None:
    with pytest.raises(InputError, match=r"no folder 'org/no-such-model'.*hub cannot be reached"):
        find_checkpoint("org/no-such-model")
    with pytest.raises(InputError, match=r"'/no/such/folder' is neither an existing folder nor the form of a hub id"):
        find_checkpoint("/no/such/folder")


def test_a_file_or_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_text("x")
    with pytest.raises(InputError, match="is a file; expected a folder"):
        find_checkpoint(str(tmp_path / "file.bin"))
    with pytest.raises(InputError, match="no config.json"):
        find_checkpoint(str(tmp_path))


def test_only_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"no \*.safetensors in .*pytorch_model.bin, which could run code"):
        find_checkpoint(str(folder)).load(dtype="float32")


def test_unknown_architecture(folder: Path) -> None:
    change_config(folder, model_type="nonesuch")
    with pytest.raises(InputError, match="unknown architecture 'nonesuch'"):
        find_checkpoint(str(folder)).config()


def test_remote_code_is_off(folder: Path) -> None:
    change_config(folder, model_type="nonesuch", auto_map={"AutoConfig": "evil.Config"})
    (folder / "evil.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(InputError, match="model.trust_remote_code: false, but .* needs its own code"):
        find_checkpoint(str(folder)).config()


def test_quantized_weights(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(InputError, match="are quantized"):
        find_checkpoint(str(folder)).config()


def test_damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot read .*config.json"):
        find_checkpoint(str(folder)).config()


def test_no_tokenizer(folder: Path) -> None:
    with pytest.raises(InputError, match="no usable tokenizer.*calibration=tokens needs none"):
        find_checkpoint(str(folder)).tokenizer()


def test_package_that_is_not_there() -> None:
    with pytest.raises(InputError, match="'no_such_package', which ships a.gguf, is not installed"):
        find_checkpoint("package:no_such_package/a.gguf")
    with pytest.raises(InputError, match="'torch' has no file a.gguf"):
        find_checkpoint("package:torch/a.gguf")


def test_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_dtype("float16", on_gpu=False) == "float16"
    assert resolve_dtype("auto", on_gpu=True) == "bfloat16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert resolve_dtype("auto", on_gpu=False) == "float32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert resolve_dtype("auto", on_gpu=False) == "bfloat16"


def test_gguf_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real GGUF, written here with llama.cpp's own package: same logits after the way through safetensors."""
    gguf = pytest.importorskip("gguf")
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "cache"))
    config = tiny_config("llama", head_dim=8, attention_bias=False, mlp_bias=False)
    model = tiny_model(config)
    path = tmp_path / "tiny.gguf"
    _write_gguf(gguf, path, model, config)
    found = find_checkpoint(str(path))
    assert found.folder.parent == cache_folder() == tmp_path / "cache"
    with torch.inference_mode():
        torch.testing.assert_close(found.load(dtype="float32")(tokens()).logits, model(tokens()).logits, atol=1e-4, rtol=0)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    assert find_checkpoint(str(path)).folder == found.folder
    assert AutoConfig.from_pretrained(found.folder).model_type == "llama"


def _write_gguf(gguf, path: Path, model, config) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    pieces = [b"<", b"0", b"<0", *(f"[{index}]".encode() for index in range(3, config.vocab_size))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(pieces)
    writer.add_token_merges(["< 0"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if any(part in name for part in ("q_proj", "k_proj")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            tensor = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
