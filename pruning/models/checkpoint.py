"""A dense model on disk: its configuration, weights and tokenizer, checked, and what it loads as.

Safetensors only; remote code only when asked for.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import (  # type: ignore[attr-defined]
    CONFIG_MAPPING_NAMES,
)
from transformers.utils.logging import disable_progress_bar

from pruning.errors import InputError, first_line
from pruning.models import baichuan, stored_weights
from pruning.models.stored_json import read_json

disable_progress_bar()  # one bar is shown, that of the search

_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What Transformers raises for values that it does not check before it uses them."""

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A dense model on disk: a folder with `config.json` and safetensors."""

    folder: Path
    trust_remote_code: bool = False

    def config(self) -> PretrainedConfig:
        """The configuration, checked.

        Raises:
            InputError: unreadable, an unknown architecture, remote code that is not trusted, or
                quantized weights.
        """
        raw = read_json(self.folder / "config.json")
        _refuse(raw, self.folder, trust_remote_code=self.trust_remote_code)
        if baichuan.is_baichuan(raw):
            return baichuan.llama_config(raw)
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(
                self.folder, trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        except (StrictDataclassError, *_UNREADABLE) as error:
            raise InputError(
                f"model.path: config.json in {self.folder} describes no model: "
                f"{' '.join(str(error).split())}"
            ) from error
        return config

    def weight_files(self) -> list[Path]:
        """See `stored_weights.weight_files`."""
        return stored_weights.weight_files(self.folder)

    def stored_dtype(self) -> str:
        """See `stored_weights.stored_dtype`."""
        return stored_weights.stored_dtype(self.folder)

    def check_weights(self) -> None:
        """Compares weights and configuration; see `stored_weights.check_weights`."""
        stored_weights.check_weights(
            self.folder, self.config(), trust_remote_code=self.trust_remote_code
        )

    def fingerprint(self) -> str:
        """SHA-256 over the bytes of the configuration and of every weight file, 32 hexadecimal
        digits. Names and dates do not count. Where the model is computed by its own code, that
        code counts too. Values are checked while they are read.

        Raises:
            InputError: a value is NaN or infinite; see `stored_weights.check_finite`.
        """
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for path in self.weight_files():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            stored_weights.check_finite(path)
        if self.trust_remote_code and "auto_map" in read_json(self.folder / "config.json"):
            for path in sorted(self.folder.rglob("*.py")):
                name = path.relative_to(self.folder).as_posix()
                digest.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:32]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer in the folder.

        Raises:
            InputError: there is none that can be opened here.
        """
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.folder, trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise InputError(f"model.path: {_why_no_tokenizer(self.folder, error)}") from error
        return tokenizer

    def load(
        self, *, dtype: str, device: torch.device | str = "cpu", device_map: str | None = None
    ) -> PreTrainedModel:
        """The model in evaluation mode.

        Args:
            dtype: `float32`, `bfloat16` or `float16`; see `resolve_dtype` for `auto`.
            device: where the whole model goes.
            device_map: instead of `device`, how to spread it over the visible GPUs (accelerate's
                names, such as `balanced`).

        Raises:
            InputError: the weights are not those of the configuration.
        """
        self.check_weights()
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.folder,
            dtype=getattr(torch, dtype),
            device_map=device_map,
            use_safetensors=True,
            trust_remote_code=self.trust_remote_code,
            local_files_only=True,
        )
        if device_map is None:
            model.to(device)  # type: ignore[arg-type]
        model.requires_grad_(False)
        return model


def _refuse(raw: Mapping[str, Any], folder: Path, *, trust_remote_code: bool) -> None:
    """Refuses a `config.json` that transformers cannot open, or only with code that is not trusted,
    and one of quantized weights.
    """
    model_type = raw.get("model_type")
    known = model_type in CONFIG_MAPPING_NAMES or baichuan.is_baichuan(raw)
    if not known and not trust_remote_code and "auto_map" in raw:
        raise InputError(
            f"model.trust_remote_code: false, but {folder} needs its own code "
            f"(auto_map in config.json, model_type {model_type!r}). "
            "Read that code, then pass model.trust_remote_code=true if you trust it"
        )
    if not known and not trust_remote_code:
        raise InputError(
            f"model.path: {folder} has the unknown architecture {model_type!r} "
            "(model_type in config.json)"
        )
    empty = [f"{name} {raw[name]}" for name in _SIZES if _is_no_size(raw.get(name))]
    if empty:
        raise InputError(
            f"model.path: config.json in {folder} describes no model: {', '.join(empty)}; sizes "
            "are above 0"
        )
    if raw.get("quantization_config"):
        raise InputError(
            f"model.path: the weights in {folder} are quantized, which cannot be cut; use the "
            "unquantized model"
        )


def _is_no_size(value: Any) -> bool:
    """What is not a number is left to transformers, which knows what may stand there."""
    return isinstance(value, int | float) and value <= 0


def _why_no_tokenizer(folder: Path, error: Exception) -> str:
    lacks_package = importlib.util.find_spec("sentencepiece") is None
    if lacks_package and (folder / "tokenizer.model").is_file():
        return f"the tokenizer.model in {folder} needs a package: pip install sentencepiece"
    return f"{folder} has no usable tokenizer: {first_line(error)} calibration=tokens needs none"
