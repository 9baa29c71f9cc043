from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from pruning.costs.measured import weight_file_bytes
from pruning.errors import InputError
from pruning.models.cache import cache_folder
from pruning.models.checkpoint import Checkpoint
from pruning.models.find import find_checkpoint
from tests.conftest import tiny_config, tiny_model, tokens
from tests.pruning.export.gguf_models import VOCAB, add_sizes, write_gemma3
from tests.pruning.export.llama_cpp import ask, needs_llama_cpp

STRETCHED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
"""The rotary embedding of Gemma 3 4B and larger ones."""


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


def test_a_model_goes_where_it_is_told(checkpoint_folder: Path) -> None:
    checkpoint = Checkpoint(checkpoint_folder)
    for where in ({"device": "meta"}, {"device_map": "meta"}):
        model = checkpoint.load(dtype="float32", **where)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_fingerprint_is_of_the_content(folder: Path, checkpoint_folder: Path) -> None:
    before = find_checkpoint(str(checkpoint_folder)).fingerprint()
    assert find_checkpoint(str(folder)).fingerprint() == before
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert find_checkpoint(str(folder)).fingerprint() != before


def test_a_fingerprint_stays_what_it_was(tmp_path: Path) -> None:
    """Or no score that is stored is found again."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    weights = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(weights)
    whole = hashlib.sha256(b"{}" + hashlib.sha256(weights).digest()).hexdigest()
    assert Checkpoint(tmp_path).fingerprint() == whole[:32]


def in_a_folder_below(folder: Path, name: str = "shards/part.safetensors") -> Path:
    """The same checkpoint with its weights elsewhere, where the index says."""
    weights = folder / "model.safetensors"
    with safe_open(weights, framework="pt") as file:
        index = {"metadata": {}, "weight_map": dict.fromkeys(file.keys(), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    moved = folder / name
    moved.parent.mkdir(exist_ok=True)
    return weights.rename(moved)


def test_shards_in_a_folder_below_count(folder: Path) -> None:
    whole = find_checkpoint(str(folder)).load(dtype="float32").state_dict()
    moved = in_a_folder_below(folder)
    checkpoint = find_checkpoint(str(folder))
    assert checkpoint.weight_files() == [moved.resolve()]
    assert weight_file_bytes(folder) == moved.stat().st_size
    assert checkpoint.stored_dtype() == "float32"
    before, loaded = checkpoint.fingerprint(), checkpoint.load(dtype="float32").state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, whole[name])
    data = bytearray(moved.read_bytes())
    data[-1] ^= 1
    moved.write_bytes(data)
    assert checkpoint.fingerprint() != before


def test_values_of_shards_in_a_folder_below_are_checked(folder: Path) -> None:
    moved = in_a_folder_below(folder)
    data = bytearray(moved.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    moved.write_bytes(data)
    with pytest.raises(InputError, match="NaN or infinite values"):
        find_checkpoint(str(folder)).fingerprint()


@pytest.mark.parametrize("absolute", [False, True])
def test_an_index_that_leads_out_of_the_folder_is_refused(
    folder: Path, tmp_path: Path, absolute: bool
) -> None:
    name = str(tmp_path / "part.safetensors") if absolute else "../part.safetensors"
    in_a_folder_below(folder, name)
    checkpoint = find_checkpoint(str(folder))
    message = re.escape(f"names {name}, which is outside of the folder")
    for use in (checkpoint.weight_files, checkpoint.check_weights, checkpoint.fingerprint):
        with pytest.raises(InputError, match=message):
            use()
    with pytest.raises(InputError, match=message):
        checkpoint.load(dtype="float32")


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_without_files_is_refused(folder: Path, index: object) -> None:
    in_a_folder_below(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="weight_map in .* names no files"):
        find_checkpoint(str(folder)).weight_files()


def test_only_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"no \*.safetensors in .*pytorch_model.bin, which could run code"
    ):
        find_checkpoint(str(folder)).load(dtype="float32")


def test_unknown_architecture(folder: Path) -> None:
    change_config(folder, model_type="nonesuch")
    with pytest.raises(InputError, match="unknown architecture 'nonesuch'"):
        find_checkpoint(str(folder)).config()


def test_remote_code_is_off(folder: Path) -> None:
    change_config(folder, model_type="nonesuch", auto_map={"AutoConfig": "evil.Config"})
    (folder / "evil.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(
        InputError, match="model.trust_remote_code: false, but .* needs its own code"
    ):
        find_checkpoint(str(folder)).config()


def test_quantized_weights(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(InputError, match="are quantized"):
        find_checkpoint(str(folder)).config()


def test_damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot read .*config.json"):
        find_checkpoint(str(folder)).config()


def test_gguf_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real GGUF, written here with llama.cpp's own package: same logits after the way through
    safetensors.
    """
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "cache"))
    config = tiny_config("llama", head_dim=8, attention_bias=False, mlp_bias=False)
    model = tiny_model(config)
    path = tmp_path / "tiny.gguf"
    _write_gguf(path, model, config)
    found = find_checkpoint(str(path))
    assert found.folder.parent == cache_folder() == tmp_path / "cache"
    with torch.inference_mode():
        torch.testing.assert_close(
            found.load(dtype="float32")(tokens()).logits, model(tokens()).logits, atol=1e-4, rtol=0
        )
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    assert find_checkpoint(str(path)).folder == found.folder
    assert AutoConfig.from_pretrained(found.folder).model_type == "llama"


@needs_llama_cpp
@pytest.mark.parametrize(
    "changes", [{}, {"rope_parameters": STRETCHED}], ids=["small", "stretched"]
)
def test_gguf_of_gemma3(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What transformers reads of it, and what it leaves out: the converted model is the one that
    was written, and the one that llama.cpp runs.

    24 tokens reach beyond the window of 8; llama.cpp rounds GELU to half precision.
    """
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "cache"))
    sizes = {
        "vocab_size": VOCAB,
        "num_hidden_layers": 7,
        "query_pre_attn_scalar": 8,
        "layer_types": None,
        "final_logit_softcapping": None,
    }
    config = tiny_config("gemma3_text", **(sizes | changes))
    model, input_ids = tiny_model(config), tokens(1, 24, vocab=VOCAB)
    write_gemma3(
        tmp_path / "tiny.gguf",
        model,
        rope_scaling=STRETCHED["full_attention"]["factor"]
        if "rope_parameters" in changes
        else None,
    )
    found = find_checkpoint(str(tmp_path / "tiny.gguf"))
    with torch.inference_mode():
        wanted, ours = model(input_ids).logits[0], found.load(dtype="float32")(input_ids).logits[0]
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)
    text = "the cat  in the hat\nthe é"
    answer = ask(tmp_path / "tiny.gguf", tmp_path, input_ids[0].tolist(), texts=(text,))
    torch.testing.assert_close(torch.from_numpy(answer.logits), wanted, atol=1e-2, rtol=0)
    assert answer.texts == [found.tokenizer()(text).input_ids]
    assert answer.texts[0][0] == found.tokenizer().bos_token_id == 2


def test_gguf_whose_rotary_embedding_would_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "cache"))
    config = tiny_config("llama", head_dim=8, attention_bias=False, mlp_bias=False)
    _write_gguf(
        tmp_path / "tiny.gguf",
        tiny_model(config),
        config,
        rope_freqs=np.full(4, 8, dtype=np.float32),
    )
    with pytest.raises(InputError, match="scales its rotary embedding, which cannot be converted"):
        find_checkpoint(str(tmp_path / "tiny.gguf"))


def _write_gguf(path: Path, model, config, rope_freqs=None) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    add_sizes(writer, config)
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
            tensor = (
                tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1)
                .swapaxes(1, 2)
                .reshape(tensor.shape)
            )
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor.numpy())
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("read", ["fingerprint", "stored_dtype", "check_weights"])
@pytest.mark.parametrize("content", [b"", b"\x08"])
def test_a_weight_file_without_content(
    checkpoint_folder: Path, tmp_path: Path, read: str, content: bytes
) -> None:
    """Whatever reads the folder first."""
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "empty"))
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(
        InputError, match=r"cannot read .*/model\.safetensors: .*; download it again"
    ):
        getattr(Checkpoint(folder), read)()


def test_code_of_a_trusted_model_is_part_of_its_fingerprint(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    """Of one that brings its own and is trusted; of others the fingerprint is what it was."""
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "remote"))
    (folder / "modeling_own.py").write_text("FACTOR = 1\n")
    known = Checkpoint(folder, trust_remote_code=True).fingerprint()
    assert known == Checkpoint(checkpoint_folder).fingerprint()
    config = json.loads((folder / "config.json").read_text())
    own = config | {"auto_map": {"AutoConfig": "modeling_own.Config"}}
    (folder / "config.json").write_text(json.dumps(own))
    plain, trusted = (Checkpoint(folder, trust_remote_code=trust) for trust in (False, True))
    before = plain.fingerprint(), trusted.fingerprint()
    (folder / "modeling_own.py").write_text("FACTOR = 2\n")
    assert plain.fingerprint() == before[0]
    assert trusted.fingerprint() != before[1]
