"""Baichuan checkpoints, written here as their hub folders are laid out, against an implementation
of their own in plain torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import silu, softmax

from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.models import baichuan
from pruning.models.families import FAMILIES
from pruning.models.find import find_checkpoint
from tests.conftest import tokens

CONFIG: dict[str, Any] = {
    "architectures": ["BaichuanForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_baichuan.BaichuanConfig",
        "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
    },
    "tokenizer_class": "BaichuanTokenizer",
    "model_type": "baichuan",
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "model_max_length": 64,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "z_loss_weight": 0,
}
Weights = dict[str, torch.Tensor]


def weights_of(config: dict[str, Any]) -> Weights:
    generator = torch.Generator().manual_seed(3)
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.W_pack.weight": (3 * hidden, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, hidden),
        }
        shapes |= {
            f"{prefix}mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")
        } | {f"{prefix}mlp.down_proj.weight": (hidden, inner)}
        shapes |= {
            f"{prefix}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")
        }
    return {
        name: torch.randn(shape, generator=generator) * 0.15 + (1 if len(shape) == 1 else 0)
        for name, shape in shapes.items()
    }


def save(folder: Path, config: dict[str, Any] = CONFIG, *, num_files: int = 2) -> Path:
    folder.mkdir(parents=True)
    weights = weights_of(config)
    names = sorted(weights)
    for number in range(num_files):
        part = {name: weights[name].clone() for name in names[number::num_files]}
        if number == 0:
            part["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        save_file(
            part,
            folder / f"model-{number + 1:05d}-of-{num_files:05d}.safetensors",
            metadata={"format": "pt"},
        )
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_baichuan.py").write_text("raise SystemExit('remote code ran')")
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "cache"))
    return save(tmp_path / "tiny-baichuan")


def reference_logits(
    config: dict[str, Any], weights: Weights, ids_BT: torch.Tensor, *, norm_head: bool
) -> torch.Tensor:
    """Baichuan2-7B as its report describes it, in double precision."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, width = (
        config["num_attention_heads"],
        config["hidden_size"] // config["num_attention_heads"],
    )
    batch, length = ids_BT.shape
    angles = torch.outer(
        torch.arange(length).double(), 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    )

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return w[name] * x / (x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()

    def rotate(x: torch.Tensor) -> torch.Tensor:
        """As complex numbers: channel c turns together with channel c + width / 2."""
        turned = (
            torch.complex(x[..., : width // 2], x[..., width // 2 :])
            * torch.polar(torch.ones_like(angles), angles)[None, None]
        )
        return torch.cat([turned.real, turned.imag], dim=-1)

    x = w["model.embed_tokens.weight"][ids_BT]
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        packed = norm(x, f"{p}input_layernorm.weight") @ w[f"{p}self_attn.W_pack.weight"].T
        q, k, v = packed.view(batch, length, 3, heads, width).permute(2, 0, 3, 1, 4)
        scores = rotate(q) @ rotate(k).transpose(-1, -2) / width**0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        mixed = (softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(batch, length, -1)
        x = x + mixed @ w[f"{p}self_attn.o_proj.weight"].T
        y = norm(x, f"{p}post_attention_layernorm.weight")
        gated = silu(y @ w[f"{p}mlp.gate_proj.weight"].T) * (y @ w[f"{p}mlp.up_proj.weight"].T)
        x = x + gated @ w[f"{p}mlp.down_proj.weight"].T
    head = w["lm_head.weight"]
    head = head / head.pow(2).sum(1, keepdim=True).sqrt() if norm_head else head
    return norm(x, "model.norm.weight") @ head.T


@pytest.mark.parametrize("generation", [1, 2])
def test_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generation: int) -> None:
    """Of Baichuan2, with its normalised head, and of the first Baichuan, whose head is an ordinary
    one.
    """
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "cache"))
    config = (
        CONFIG
        if generation == 2
        else {name: value for name, value in CONFIG.items() if name != "z_loss_weight"}
    )
    checkpoint = find_checkpoint(str(save(tmp_path / "model", config)))
    model = checkpoint.load(dtype="float32")
    ids = tokens(3, 24)
    expected = reference_logits(config, weights_of(config), ids, norm_head=generation == 2)
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits.double(), expected, atol=1e-5, rtol=0)
    assert model.config.model_type in FAMILIES
    with safe_open(next(checkpoint.folder.glob("*.safetensors")), framework="pt") as file:
        names = list(file.keys())
        assert not [name for name in names if "W_pack" in name or "rotary" in name]


@pytest.mark.parametrize(
    ("told", "positions"),
    [
        ({"max_position_embeddings": 64, "model_max_length": 32}, 64),
        ({"model_max_length": 32}, 32),
        ({}, 4096),
    ],
)
def test_how_long_a_sequence_may_be(told: dict[str, int], positions: int) -> None:
    lengths = ("max_position_embeddings", "model_max_length")
    others = {name: value for name, value in CONFIG.items() if name not in lengths}
    assert baichuan.llama_config(others | told).max_position_embeddings == positions


def test_a_conversion_is_found_again_by_its_name(folder: Path) -> None:
    """Or gigabytes are converted anew."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    expected = f"tiny-baichuan-{digest.hexdigest()[:16]}"
    assert find_checkpoint(str(folder)).folder.name == expected


def test_converted_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the checkpoint changes, be its size and date as they were."""
    first = find_checkpoint(str(folder))
    with monkeypatch.context() as patched:
        patched.setattr(baichuan, "write_shards", None)
        assert find_checkpoint(str(folder)).folder == first.folder
    path = next(folder.glob("*.safetensors"))
    weights, status = load_file(path), path.stat()
    save_file(
        {name: tensor + 1 for name, tensor in weights.items()}, path, metadata={"format": "pt"}
    )
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    second = find_checkpoint(str(folder))
    assert second.fingerprint() != first.fingerprint()


def test_the_stored_type_stays(tmp_path: Path, folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        save_file(
            {name: tensor.bfloat16() for name, tensor in load_file(path).items()},
            path,
            metadata={"format": "pt"},
        )
    checkpoint = find_checkpoint(str(folder))
    assert checkpoint.stored_dtype() == "bfloat16"
    head = checkpoint.load(dtype="float32").get_output_embeddings().weight
    torch.testing.assert_close(head.norm(dim=1), torch.ones(128), atol=4e-3, rtol=0)


def test_alibi_is_counted_and_not_run(tmp_path: Path, folder: Path) -> None:
    """The 13B models say `model_max_length` only."""
    larger = {name: value for name, value in CONFIG.items() if name != "max_position_embeddings"}
    (folder / "config.json").write_text(json.dumps(larger))
    with pytest.raises(InputError, match=r"Baichuan model with ALiBi positions.*multipruner plan"):
        find_checkpoint(str(folder))
    accounting = Accounting(find_checkpoint(str(folder), config_only=True).config())
    assert accounting.num_dense_parameters == sum(
        tensor.numel() for tensor in weights_of(CONFIG).values()
    )


def test_a_configuration_alone(folder: Path) -> None:
    """Real sizes, as published, and no weights."""
    for path in folder.glob("*.safetensors"):
        path.unlink()
    published = {
        "vocab_size": 125696,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
    (folder / "config.json").write_text(json.dumps(CONFIG | published))
    checkpoint = find_checkpoint(str(folder), config_only=True)
    assert Accounting(checkpoint.config()).num_dense_parameters == 7_505_973_248
    with pytest.raises(InputError, match=r"no \*.safetensors in"):
        find_checkpoint(str(folder))
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        InputError,
        match=(
            "pytorch_model.bin, which could run code when opened: convert them to safetensors first"
        ),
    ):
        find_checkpoint(str(folder))


def test_quantized_weights(folder: Path) -> None:
    (folder / "config.json").write_text(
        json.dumps(CONFIG | {"quantization_config": {"load_in_4bit": True}})
    )
    with pytest.raises(InputError, match="are quantized"):
        find_checkpoint(str(folder), config_only=True).config()


@pytest.mark.parametrize("dummy_prefix", [False, True])
def test_tokenizer(folder: Path, dummy_prefix: bool) -> None:
    """SentencePiece's own pieces, no token in front, none of the tokenizer's remote code."""
    sentencepiece = pytest.importorskip("sentencepiece")
    text = folder / "corpus.txt"
    text.write_text("the old cat sees a small red bird\nunder the big tree with 1234 fish\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    own = {
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        "tokenizer_class": "BaichuanTokenizer",
        "add_bos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            own | {"bos_token": {"__type": "AddedToken", "content": "<s>"}, "pad_token": "<0x00>"}
        )
    )
    tokenizer = find_checkpoint(str(folder)).tokenizer()
    for words in ("the old cat", "a  1999 \n\n fish", "登鹳雀楼"):
        assert tokenizer(words)["input_ids"] == pieces.encode(words)
    assert (tokenizer.bos_token, tokenizer.pad_token) == ("<s>", "<0x00>")


def test_a_tokenizer_that_needs_a_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = find_checkpoint(str(folder)).folder
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')

    def missing(*_: object, **__: object) -> None:
        raise ValueError("`tiktoken` is required to read a `tiktoken` file")

    monkeypatch.setattr("pruning.models.checkpoint.AutoTokenizer.from_pretrained", missing)
    monkeypatch.setattr("pruning.models.checkpoint.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs a package: pip install sentencepiece"):
        find_checkpoint(str(folder)).tokenizer()


@pytest.mark.parametrize(
    ("told", "normalized"),
    [
        ({"vocab_size": 125_696}, True),
        ({"vocab_size": 64_000}, False),
        ({"z_loss_weight": 0}, True),
    ],
)
def test_the_head_of_baichuan_2_is_normalized(told: dict[str, int], normalized: bool) -> None:
    assert baichuan._has_norm_head(told) is normalized
