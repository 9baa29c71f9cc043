"""Computes logits from an exported GGUF as llama.cpp would, with nothing but what is in the file:
names, order of rows, types and settings are all needed to come to the same.

Shape letters: B sequences, T tokens, D hidden size, H heads, G KV heads, K head size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from torch.nn import functional

_BYTES = 4 * 2
"""Of each value of a tensor while it is dequantized: it, and a copy."""


class GGUFModel:
    """An exported file, of which one tensor at a time is in memory.

    Raises:
        RuntimeError: it is no whole file of the architecture that is written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._reader = GGUFReader(path)
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise RuntimeError(f"gguf cannot open {path}: {error}") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._used: set[str] = set()
        self.architecture = self._reader.fields["general.architecture"].contents()

    @property
    def fits(self) -> bool:
        """Whether memory has room for its largest tensor."""
        largest = max(int(tensor.n_elements) for tensor in self._reader.tensors)
        return bool(_BYTES * largest <= psutil.virtual_memory().available)

    @torch.inference_mode()
    def logits(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        """float32 [B, T, V].

        Raises:
            RuntimeError: the file lacks something, or has something that llama.cpp would not use
                or would take for something else.
        """
        layers = range(self._setting("block_count"))
        heads, kv_heads, channels = (
            self._setting(name)
            for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
        )
        if not heads[0] or not all(channels):
            raise RuntimeError(
                "llama.cpp would not compute a first layer without attention or a layer without MLP"
            )
        hidden_BTD = self._tensor("token_embd.weight")[input_ids_BT]
        for index in layers:
            if heads[index]:
                hidden_BTD = hidden_BTD + self._attention(
                    index, hidden_BTD, heads[index], kv_heads[index]
                )
            hidden_BTD = hidden_BTD + self._mlp(index, hidden_BTD, channels[index])
        normed = self._norm("output_norm", hidden_BTD)
        head = "output" if "output.weight" in self._tensors else "token_embd"
        found = self._project(head, normed, self._setting("vocab_size"))
        unused = sorted(self._tensors.keys() - self._used)
        if unused:
            raise RuntimeError(f"the file has tensors without use: {', '.join(unused[:3])}")
        return found

    def _attention(
        self, index: int, hidden_BTD: torch.Tensor, heads: int, kv_heads: int
    ) -> torch.Tensor:
        size = self._setting("attention.key_length")
        normed = self._norm(f"blk.{index}.attn_norm", hidden_BTD)
        query, key, value = (
            self._project(f"blk.{index}.attn_{name}", normed, count * size)
            .unflatten(-1, (count, size))
            .transpose(1, 2)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        mixed_BHTK = functional.scaled_dot_product_attention(
            self._rotated(query), self._rotated(key), value, is_causal=True, enable_gqa=True
        )
        return self._project(
            f"blk.{index}.attn_output", mixed_BHTK.transpose(1, 2).flatten(2), normed.shape[-1]
        )

    def _mlp(self, index: int, hidden_BTD: torch.Tensor, channels: int) -> torch.Tensor:
        normed = self._norm(f"blk.{index}.ffn_norm", hidden_BTD)
        gate, up = (
            self._project(f"blk.{index}.ffn_{name}", normed, channels) for name in ("gate", "up")
        )
        return self._project(f"blk.{index}.ffn_down", functional.silu(gate) * up, normed.shape[-1])

    def _rotated(self, states_BHTK: torch.Tensor) -> torch.Tensor:
        """Turned by position: each pair of neighbours together."""
        size = self._setting("rope.dimension_count")
        exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
        frequencies = float(self._setting("rope.freq_base")) ** -exponents
        if "rope_freqs.weight" in self._tensors:
            frequencies = frequencies / self._tensor("rope_freqs.weight")
        angles = torch.arange(states_BHTK.shape[-2])[:, None] * frequencies
        even, odd = states_BHTK[..., ::2], states_BHTK[..., 1::2]
        cosine, sine = angles.cos(), angles.sin()
        turned = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
        return turned.flatten(-2)

    def _norm(self, name: str, hidden_BTD: torch.Tensor) -> torch.Tensor:
        epsilon = float(self._setting("attention.layer_norm_rms_epsilon"))
        weight = self._tensor(f"{name}.weight")
        return functional.rms_norm(hidden_BTD, (len(weight),), weight, epsilon)

    def _project(self, name: str, states: torch.Tensor, rows: int) -> torch.Tensor:
        weight = self._tensor(f"{name}.weight")
        if tuple(weight.shape) != (rows, states.shape[-1]):
            raise RuntimeError(
                f"{name}.weight is {list(weight.shape)}, but the settings of the file say "
                f"{[rows, states.shape[-1]]}"
            )
        bias = self._tensor(f"{name}.bias") if f"{name}.bias" in self._tensors else None
        return functional.linear(states, weight, bias)

    def _setting(self, name: str) -> Any:
        field = self._reader.fields.get(f"{self.architecture}.{name}")
        if field is None:
            raise RuntimeError(f"the file lacks the setting {self.architecture}.{name}")
        return field.contents()

    def _tensor(self, name: str) -> torch.Tensor:
        """Dequantized to float32."""
        if name not in self._tensors:
            raise RuntimeError(f"the file lacks the tensor {name}")
        self._used.add(name)
        stored = self._tensors[name]
        values = dequantize(stored.data, stored.tensor_type)
        return torch.from_numpy(np.array(values, dtype=np.float32))


def verify_read_back(
    path: Path, input_ids_BT: torch.Tensor, logits_BTV: torch.Tensor, tolerance: float
) -> dict[str, float] | None:
    """Compares what the file computes with the logits of the masked model.

    Returns:
        `difference` relative to the largest logit (at least 1), and the `tolerance`; None if
        memory has no room for a tensor.

    Raises:
        RuntimeError: the file is not what llama.cpp needs.
    """
    model = GGUFModel(path)
    if not model.fits:
        return None
    wanted = logits_BTV.float().cpu()
    scale = max(1.0, wanted.abs().max().item())
    difference = ((model.logits(input_ids_BT) - wanted).abs().max() / scale).item()
    return {"difference": difference, "tolerance": tolerance}
