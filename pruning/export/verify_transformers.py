"""Opens an exported folder as a user without this project would, and says how far its logits are
from those of the masked model.

`verify_export` runs this very file as a program, in a fresh process in which our packages cannot be
imported.

Shape letters: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

OURS = ("pruning", "workers", "pipelines")
TOLERANCES = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference that an export may have, relative to the largest logit (at least 1), by the
type that logits are computed in: as sums in another order.
"""


def probe_tokens(vocab_size: int, context: int) -> torch.Tensor:
    """int64 [B, T], the same for the same model."""
    length = max(2, min(48, context))
    return torch.randint(0, vocab_size, (2, length), generator=torch.Generator().manual_seed(0))


def verify_export(
    folder: Path, input_ids_BT: torch.Tensor, logits_BTV: torch.Tensor, dtype: str
) -> dict[str, float]:
    """Opens `folder` in a fresh process and compares.

    Args:
        logits_BTV: of the masked model, any floating type.
        dtype: to compute in, as the masked model was; its tolerance counts.

    Returns:
        `difference` of the logits and `cached_difference` of those computed with a cache of the
        tokens before, both relative to the largest logit (at least 1), and the `tolerance`.

    Raises:
        RuntimeError: it cannot be opened; the message ends with what transformers said.
    """
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch) / "probe.safetensors"
        save_file(
            {
                "input_ids": input_ids_BT.contiguous(),
                "logits": logits_BTV.float().cpu().contiguous(),
            },
            probe,
        )
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": scratch,
            "TRANSFORMERS_VERBOSITY": "error",
            "PYTHONWARNINGS": "ignore",
        }
        command = [
            sys.executable,
            "-I",
            str(Path(__file__).resolve()),
            str(folder.resolve()),
            str(probe),
            dtype,
        ]
        done = subprocess.run(
            command, env=environment, cwd=scratch, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        raise RuntimeError(
            f"a fresh process cannot open {folder}: "
            f"{(done.stderr.strip().splitlines() or ['killed'])[-1]}"
        )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found | {"tolerance": TOLERANCES[dtype]}


def passed(result: Mapping[str, Any]) -> bool:
    """Whether every difference is within tolerance; NaN is not."""
    differences = [value for value in result.values() if not isinstance(value, str)]
    return all(value <= result["tolerance"] for value in differences)


@torch.inference_mode()
def _main(folder: str, probe: str, dtype: str) -> None:
    tensors = load_file(probe)
    input_ids_BT, wanted = tensors["input_ids"], tensors["logits"]
    opened: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        trust_remote_code=True,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    model, report = opened
    lacking = [str(name) for kind in ("missing_keys", "mismatched_keys") for name in report[kind]]
    if lacking:
        raise ValueError(f"the folder lacks weights: {', '.join(lacking[:3])}")
    model.eval()
    scale = max(1.0, wanted.abs().max().item())
    whole = model(input_ids_BT).logits.float()
    first = model(input_ids_BT[:, :-1], use_cache=True)
    last = model(
        input_ids_BT[:, -1:], past_key_values=first.past_key_values, use_cache=True
    ).logits.float()
    difference = ((whole - wanted).abs().max() / scale).item()
    cached_difference = ((last - wanted[:, -1:]).abs().max() / scale).item()
    sys.stdout.write(
        json.dumps({"difference": difference, "cached_difference": cached_difference}) + "\n"
    )


if __name__ == "__main__":
    for package in OURS:
        sys.modules[package] = None  # type: ignore[assignment]  # importing it fails from here on
    _main(*sys.argv[1:])
