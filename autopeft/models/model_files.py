"""Where the files of a base model are: a local folder or a hub snapshot, checked before anything is loaded."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autopeft.errors import ModelError
from autopeft.models.folder_check import check_config, check_weights
from autopeft.spec.local_folders import local_folder, sha256
from autopeft.spec.messages import first_line
from autopeft.spec.yaml_file import read_yaml

_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.codes", "*.jinja", "README.md", "LICENSE*")
"""Files of a hub repository that are fetched: configuration, tokenizer, weights, terms; never a pickle."""


def locate(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, needs_weights: bool = True
) -> Path:
    """Return the folder that holds a model's configuration and weights.

    Args:
        name: Local folder, or hub id.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether a model that brings its own code is accepted.
        needs_weights: Whether the weights must be there; where not, the hub is asked for none.

    Raises:
        ModelError: There is no such model, or it is incomplete, or it wants to run its own code.
    """
    folder = _local(name)
    if folder is None:
        folder = _fetch(name, revision, trust_remote_code, needs_weights)
    config = check_config(name, folder, trust_remote_code=trust_remote_code)
    if needs_weights or has_weights(folder):
        check_weights(name, folder, weight_files(folder), config)
    return folder


def _local(name: str) -> Path | None:
    """Return the local folder of that name, or None where there is none."""
    try:
        folder = local_folder(name)
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # a name that no system takes, a user without a home
        return None


def _is_file(name: str) -> bool:
    try:
        return local_folder(name).is_file()
    except (OSError, RuntimeError):
        return False


def travelling_files(name: str, *, trust_remote_code: bool = False) -> list[Path]:
    """Return the files of a local model folder that loading it takes; none of a hub id, which each node fetches."""
    folder = _local(name)
    if folder is None:
        return []
    weights = set(weight_files(folder))
    wanted = [pattern for pattern in _wanted(trust_remote_code) if pattern != "*.safetensors"]
    others = {path for pattern in wanted for path in folder.glob(pattern) if path.is_file()}
    return sorted(weights | others)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that the weights are in, in order: the whole file, else those that the index names.

    Raises:
        ModelError: The index is damaged.
    """
    single = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():  # an index beside a whole file is stale: transformers ignores it
        return [single] if single.is_file() or single.is_symlink() else []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if beyond := [name for name in names if name != Path(name).name]:
            raise ValueError(f"{beyond[0]!r:.100} is no file beside it")
        return [folder / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} must say where each weight is, but it is damaged: {error}") from None


def has_weights(folder: Path) -> bool:
    """Return whether the weights are there, all of them."""
    files = weight_files(folder)
    return bool(files) and all(path.is_file() for path in files)


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 over configuration and weights, the same wherever the folder is.

    Files are read once per process, and again where their size or time changed.
    """
    total = hashlib.sha256()
    for path in [folder / "config.json", *(weight_files(folder) if has_weights(folder) else [])]:
        total.update(f"{path.name}:{sha256(path)}\n".encode())
    return total.hexdigest()


def find_licence(folder: Path) -> str | None:
    """Return the licence that a model's folder states, or None where it states none.

    The front matter of its card comes first (an identifier such as `apache-2.0`, or the name of another
    licence), then the first line of its LICENSE file (such as `MIT License`).
    """
    card = folder / "README.md"
    if card.is_file() and (stated := _front_matter(card.read_text(encoding="utf-8", errors="replace"))):
        licence = stated.get("license_name") if stated.get("license") == "other" else stated.get("license")
        if licence:
            return ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence)
    for file in sorted(folder.glob("LICENSE*")):
        lines = (line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
        return next((line for line in lines if line), None)
    return None


def _front_matter(text: str) -> Mapping[str, Any]:
    """Return the YAML between the `---` lines that a card begins with; empty where there is none."""
    start, _, rest = text.partition("---\n")
    if start.strip() or "\n---" not in rest:
        return {}
    try:
        card = read_yaml(rest.partition("\n---")[0], name="README.md", error=ModelError, may_have_dates=True)
        values: Mapping[str, Any] = card.values
        return values
    except ModelError:
        return {}


def _fetch(name: str, revision: str | None, trust_remote_code: bool, needs_weights: bool) -> Path:
    """Return the local snapshot of a hub repository, downloading what is not there yet."""
    if _is_file(name):
        raise ModelError(f"model must be a folder or a hub id, but {name!r} is a file; give the folder that it is in")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ModelError(
            f"model must be a folder or a hub id, but {name!r} is a path where no folder is; check the path"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = _wanted(trust_remote_code)
    if not needs_weights:
        wanted.remove("*.safetensors")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = first_line(error)
        raise ModelError(
            f"model must be a folder or a hub id that can be reached, but {name!r} is no folder here and the hub "
            f"says: {reason}; check the name, the network, HF_HUB_OFFLINE and your token, or give a local folder"
        ) from error


def _wanted(trust_remote_code: bool) -> list[str]:
    return [*_WANTED, "*.py"] if trust_remote_code else list(_WANTED)
