"""Dense models in: a folder, a hub id, or a GGUF file, found, checked, fingerprinted and loaded.

Safetensors only; remote code only when asked for.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
from transformers.utils.logging import (
    disable_progress_bar,
    get_verbosity,
    set_verbosity,
    set_verbosity_error,
)

from pruning.errors import InputError
from pruning.models import baichuan
from pruning.models.meta_model import meta_model

disable_progress_bar()  # one bar is shown, that of the search

_INDEX = "model.safetensors.index.json"
_NUM_NAMED = 3
"""Tensors that a message names; of more it says how many."""


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
        model_type = raw.get("model_type")
        is_baichuan = baichuan.is_baichuan(raw)
        if (
            not self.trust_remote_code
            and model_type not in CONFIG_MAPPING_NAMES
            and not is_baichuan
        ):
            if "auto_map" in raw:
                raise InputError(
                    f"model.trust_remote_code: false, but {self.folder} needs its own code "
                    f"(auto_map in config.json, model_type {model_type!r}). "
                    "Read that code, then pass model.trust_remote_code=true if you trust it"
                )
            raise InputError(
                f"model.path: {self.folder} has the unknown architecture {model_type!r} "
                "(model_type in config.json)"
            )
        if raw.get("quantization_config"):
            raise InputError(
                f"model.path: the weights in {self.folder} are quantized, which cannot be cut; "
                "use the unquantized model"
            )
        if is_baichuan:
            return baichuan.llama_config(raw)
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(
                self.folder, trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        except StrictDataclassError as error:
            raise InputError(
                f"model.path: config.json in {self.folder} describes no model: "
                f"{' '.join(str(error).split())}"
            ) from error
        return config

    def weight_files(self) -> list[Path]:
        """The safetensors files.

        Raises:
            InputError: there are none.
        """
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            others = sorted(
                path.name
                for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt")
                for path in self.folder.glob(pattern)
            )
            instead = (
                (
                    f" (it has {', '.join(others[:3])}, which could run code when opened: convert "
                    "them to safetensors first)"
                )
                if others
                else ""
            )
            raise InputError(f"model.path: no *.safetensors in {self.folder}{instead}")
        return files

    def check_weights(self) -> None:
        """Compares the headers of the weight files with the model that the configuration describes,
        under the names that transformers gives the tensors. No weight is read: it would fill up
        what is missing with random numbers.

        Raises:
            InputError: a tensor is missing or has another shape, or a file is missing or damaged.
        """
        config = self.config()
        kind: Any = type(meta_model(config, trust_remote_code=self.trust_remote_code))
        verbosity = get_verbosity()
        set_verbosity_error()  # it has a table for everybody, and here is one message
        try:
            model, found = kind.from_pretrained(
                None,
                config=config,
                state_dict=self._headers(),
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        finally:
            set_verbosity(verbosity)
        other = {
            name: f"is {list(theirs)}" for name, theirs, _ in found["mismatched_keys"]
        } | dict.fromkeys(found["missing_keys"], "is missing")
        wrong = [
            f"{name} {other[name]}, expected {list(tensor.shape)}"
            for name, tensor in model.state_dict().items()
            if name in other
        ]
        if wrong:
            more = f"; and {len(wrong) - _NUM_NAMED} more" if len(wrong) > _NUM_NAMED else ""
            raise InputError(
                f"model.path: the weights in {self.folder} do not fit its config.json: "
                f"{'; '.join(wrong[:_NUM_NAMED])}{more}. "
                "Use weights and config.json of one model, or download both again"
            )

    def _headers(self) -> dict[str, torch.Tensor]:
        """Every tensor of the files that transformers loads, without its values."""
        index, single = self.folder / _INDEX, self.folder / "model.safetensors"
        files = (
            sorted({self.folder / name for name in read_json(index)["weight_map"].values()})
            if index.is_file()
            else self.weight_files()
        )
        headers: dict[str, torch.Tensor] = {}
        for path in [single] if single.is_file() else files:
            try:
                with safe_open(path, framework="pt") as file:
                    headers |= {
                        name: torch.empty(file.get_slice(name).get_shape(), device="meta")
                        for name in file.keys()  # noqa: SIM118 - it is no mapping
                    }
            except (OSError, SafetensorError) as error:
                raise InputError(
                    f"model.path: cannot read {path}: {first_line(error)}; download it again"
                ) from error
        return headers

    def stored_dtype(self) -> str:
        """The type that most values of the weights are stored in: `float32`, `bfloat16` or
        `float16`.

        Raises:
            InputError: it is another one.
        """
        values: Counter[str] = Counter()
        for path in self.weight_files():
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    tensor = file.get_slice(name)
                    values[tensor.get_dtype()] += math.prod(tensor.get_shape())
        [(most, _)] = values.most_common(1) or [("none", 0)]
        names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
        if most not in names:
            raise InputError(
                f"model.path: the weights in {self.folder} are stored as {most}; expected one of "
                f"{', '.join(names)}"
            )
        return names[most]

    def fingerprint(self) -> str:
        """SHA-256 over the bytes of the configuration and of every weight file, 32 hexadecimal
        digits. Names and dates do not count.
        """
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for path in self.weight_files():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:32]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.folder, trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError) as error:
            if (self.folder / "tokenizer.model").is_file() and importlib.util.find_spec(
                "sentencepiece"
            ) is None:
                raise InputError(
                    f"model.path: the tokenizer.model in {self.folder} needs a package: pip "
                    "install sentencepiece"
                ) from error
            raise InputError(
                f"model.path: {self.folder} has no usable tokenizer: {first_line(error)} "
                "calibration=tokens needs none"
            ) from error
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
        model.eval()
        return model


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"model.path: cannot read {path}: {error}") from error
    return data


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
