"""From a model's name or path to its checkpoint: a folder, a GGUF, a package, or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pruning.errors import InputError, first_line
from pruning.models.cache import cache_folder
from pruning.models.gguf_source import converted_gguf, gguf_source
from pruning.models.stored_json import read_json

if TYPE_CHECKING:
    from pruning.models.checkpoint import Checkpoint

_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]


def find_checkpoint(
    path: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    config_only: bool = False,
) -> Checkpoint:
    """Turns what a user names into a folder on disk.

    Args:
        path: a folder; a `.gguf` file; `package:NAME/FILE.gguf`, a GGUF that an installed Python
            package ships; or a hub id. GGUFs and Baichuan models are converted once to Llama's
            safetensors in the cache (`cache_folder`), hub models are downloaded once by
            huggingface_hub.
        revision: of a hub model.
        config_only: nothing but its configuration will be read: weights are neither downloaded nor
            converted, except from a GGUF.

    Raises:
        InputError: nothing usable is there.
    """
    from pruning.models import baichuan  # torch and transformers: seconds to import
    from pruning.models.checkpoint import Checkpoint

    folder = configured_folder(path, revision)
    found = Checkpoint(folder, trust_remote_code)
    if config_only or gguf_source(path) is not None:
        return found
    raw = read_json(folder / "config.json")
    is_baichuan = baichuan.is_baichuan(raw)
    if is_baichuan:
        baichuan.refuse_alibi(raw, folder)
    if not Path(path).expanduser().is_dir():
        found = Checkpoint(_downloaded(path, revision, _PATTERNS), trust_remote_code)
    return (
        Checkpoint(baichuan.converted(found.folder, raw, found.weight_files(), cache_folder()))
        if is_baichuan
        else found
    )


def configured_folder(path: str, revision: str | None) -> Path:
    """The folder with the `config.json` of what a user names, as `find_checkpoint` with
    `config_only`. Some models are refused for what it says, before gigabytes come.

    Raises:
        InputError: nothing usable is there.
    """
    source = gguf_source(path)
    if source is not None:
        return converted_gguf(source)
    local = Path(path).expanduser()
    if local.exists() and not local.is_dir():
        raise InputError(
            f"model.path: {path} is a file; expected a folder with config.json and "
            "*.safetensors, a .gguf file, or a hub id"
        )
    folder = local.resolve() if local.is_dir() else _downloaded(path, revision, ["*.json"])
    if not (folder / "config.json").is_file():
        raise InputError(f"model.path: no config.json in {folder}")
    return folder


def _downloaded(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise InputError(
            f"model.path: {name!r} is neither an existing folder nor the form of a hub id "
            "(organisation/model)"
        ) from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"model.path: there is no folder {name!r}, and as a hub id it is not in the local "
            "cache and the hub cannot be reached. "
            "Check the path, or download the model on a machine with network"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise InputError(
            f"model.path: there is no folder {name!r}, and the hub does not give a model of that "
            f"name{at}: {first_line(error)}"
        ) from error
