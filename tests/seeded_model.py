"""A small Llama from a seed, on which the authors' own program ran.

It has GQA, an untied head, and 201,280 parameters. Its weights are drawn by numpy's Philox in
float32, so that they have the same bits whatever torch is installed. Factors on channels and KV
groups make the order of both matter: with k and v counted once for each group instead of once for
each query head, every layer gets another order. What that program found is in
`data/seeded_golden.json`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

SEED = 63
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "torch_dtype": "float32",
}

_Weights = npt.NDArray[np.float32]

_VOCAB, _HIDDEN, _CHANNELS, _LAYERS, _KV_ROWS = 128, 64, 176, 4, 32
_SHAPES = {
    "embed_tokens": (_VOCAB, _HIDDEN),
    "lm_head": (_VOCAB, _HIDDEN),
    "q_proj": (_HIDDEN, _HIDDEN),
    "k_proj": (_KV_ROWS, _HIDDEN),
    "v_proj": (_KV_ROWS, _HIDDEN),
    "o_proj": (_HIDDEN, _HIDDEN),
    "gate_proj": (_CHANNELS, _HIDDEN),
    "up_proj": (_CHANNELS, _HIDDEN),
    "down_proj": (_HIDDEN, _CHANNELS),
}
_SCALES = {"embed_tokens": 0.5, "lm_head": 0.45, "down_proj": 0.05}
_OTHER_SCALE = 0.12
_LAYER_FACTORS = {"o_proj": (1.0, 0.8, 0.35, 0.9), "down_proj": (1.6, 0.6, 1.3, 1.4)}
_GROUP_FACTORS = {
    "q_proj": (
        (1.5, 1.5, 0.4, 2.4),
        (2.4, 0.4, 1.5, 1.5),
        (0.4, 2.4, 1.5, 1.5),
        (1.5, 2.4, 0.4, 1.5),
    ),
    "k_proj": (
        (0.6, 1.0, 1.5, 0.25),
        (0.25, 1.5, 0.6, 1.0),
        (1.5, 0.25, 1.0, 0.6),
        (0.6, 0.25, 1.5, 1.0),
    ),
    "v_proj": (
        (0.5, 1.2, 1.3, 0.25),
        (0.25, 1.3, 0.5, 1.2),
        (1.3, 0.25, 1.2, 0.5),
        (0.5, 0.25, 1.3, 1.2),
    ),
    "o_proj": (
        (2.0, 0.9, 1.1, 3.0),
        (3.0, 1.1, 2.0, 0.9),
        (1.1, 3.0, 0.9, 2.0),
        (2.0, 3.0, 1.1, 0.9),
    ),
}
"""Of each layer, one factor for each KV group: on rows of q, k and v, on columns of o."""

_NORMS = ("input_layernorm", "post_attention_layernorm")
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


@cache
def golden() -> dict[str, Any]:
    """What the authors' program did: settings, token sequences, every step with its candidates."""
    path = Path(__file__).with_name("data") / "seeded_golden.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def weights() -> dict[str, _Weights]:
    """Every tensor under its name in the checkpoint, in the order in which they are drawn."""
    rng = np.random.Generator(np.random.Philox(SEED))
    uniform = rng.random((len(_MLP), _LAYERS, _CHANNELS), dtype=np.float32)
    of_channels = np.float32(0.6) + np.float32(1.2) * (uniform * uniform)
    found = {}
    for name in sorted(_names()):
        *path, kind, _ = name.split(".")
        layer = int(path[2]) if len(path) > 2 else None
        tensor = rng.standard_normal(_SHAPES.get(kind, (_HIDDEN,)), dtype=np.float32)
        if kind not in _SHAPES:
            found[name] = np.float32(1) + np.float32(0.1) * tensor
            continue
        tensor = tensor * np.float32(_SCALES.get(kind, _OTHER_SCALE))
        if layer is not None:
            tensor = tensor * np.float32(_LAYER_FACTORS.get(kind, (1.0,) * _LAYERS)[layer])
            is_mlp, is_output = kind in _MLP, kind in ("o_proj", "down_proj")
            factors = of_channels[_MLP.index(kind), layer] if is_mlp else _groups(kind, layer)
            tensor = tensor * (factors if is_output else factors[:, None])
        found[name] = tensor
    return found


def save_seeded(folder: Path) -> Path:
    """Writes the model as a checkpoint with the same bytes on every machine; returns its folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    save_file(weights(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_tokens(path: Path) -> Path:
    """Writes the sequences that the authors' program scored, as `calibration=tokens` reads them."""
    save_file({"input_ids": np.array(golden()["input_ids"], dtype=np.int64)}, path)
    return path


def _names() -> list[str]:
    blocks = [f"self_attn.{kind}" for kind in _ATTENTION] + [f"mlp.{kind}" for kind in _MLP]
    parts = (*blocks, *_NORMS)
    inside = [f"model.layers.{layer}.{part}" for layer in range(_LAYERS) for part in parts]
    return [f"{name}.weight" for name in ("lm_head", "model.embed_tokens", "model.norm", *inside)]


def _groups(kind: str, layer: int) -> _Weights:
    """The factor of each row (of each column of o_proj): that of its KV group."""
    factors = np.array(_GROUP_FACTORS[kind][layer], dtype=np.float32)
    return np.repeat(factors, _SHAPES[kind][1 if kind == "o_proj" else 0] // len(factors))
