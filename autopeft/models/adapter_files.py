"""Files of an adapter folder that anybody may have written, read with limits and never as code.

What is refused: links that lead out of the folder, what is no plain file, JSON that is too large, too deep or names a
key twice, and tensor files whose header promises something else than the file holds. Nothing of a tensor is read before
its header has been checked.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from autopeft.errors import ArtifactError

MAX_JSON_BYTES = 4 * 2**20
"""Of `autopeft.json`; those of real designs have a few KiB."""
MAX_DEPTH = 64
"""Objects and lists inside of each other."""
MAX_HEADER_BYTES = 16 * 2**20
"""Of a tensor file: about 100,000 tensors."""
MAX_NAME_LENGTH = 1024
_ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""The dtypes that exports have."""


def find_file(folder: Path, name: str) -> Path | None:
    """Return where a file of a folder really is, or None where there is none.

    Raises:
        ArtifactError: It is no plain file, or a link that leads out of the folder.
    """
    try:
        root, file = folder.resolve(), (folder / name).resolve()
        if not file.exists():
            return None
        if not file.is_file():
            raise ArtifactError(f"{name} of {folder} must be a plain file; export the adapter again")
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a name that no system takes
        raise ArtifactError(f"{name} of {str(folder)!r} cannot be opened: {error}; check the path") from None
    # The cache of the hub keeps its files beside the snapshots that link to them.
    blobs = root.parent.parent / "blobs"
    if file.is_relative_to(root) or (root.parent.name == "snapshots" and file.parent == blobs):
        return file
    raise ArtifactError(
        f"an adapter's files must be in its folder, but {name} of {folder} is a link that leads out of it; copy the "
        "adapter anew, from where you trust it"
    )


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ArtifactError: It is too large or too deep, names a key twice, or is no JSON object.
    """
    if (size := file.stat().st_size) > MAX_JSON_BYTES:
        raise ArtifactError(f"{file} must have at most {MAX_JSON_BYTES} bytes, but has {size}; no export is so large")
    return _parse(file.read_bytes(), str(file))


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        ArtifactError: It is damaged, or not what an export holds.
    """
    _check_header(file)
    try:
        return safetensors.torch.load_file(file)
    except (SafetensorError, OSError, ValueError, RuntimeError, OverflowError) as error:
        raise _damaged(file, error) from error


def _parse(content: bytes, name: str) -> dict[str, Any]:
    try:
        values = json.loads(content.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise _damaged(name, error) from None
    if not isinstance(values, dict):
        raise _damaged(name, f"it must be an object, but is {type(values).__name__}")
    if _depth(values) > MAX_DEPTH:
        raise _damaged(name, f"it is more than {MAX_DEPTH} levels deep")
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"a key must stand once, but {next(n for n in names if names.count(n) > 1)!r:.100} is repeated"
        )
    return values


def _depth(values: Any) -> int:
    level, depth = [values], 0
    while level:
        depth += 1
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    return depth


def _check_header(file: Path) -> None:
    """Check what a tensor file promises against what it holds, without reading a tensor."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        n_bytes = int.from_bytes(opened.read(8), "little")
        if size < 8 or n_bytes > min(MAX_HEADER_BYTES, size - 8):
            raise _damaged(file, f"its header of {n_bytes} bytes does not fit a file of {size}, or is too large")
        header = _parse(opened.read(n_bytes), str(file))
    header.pop("__metadata__", None)
    held = size - 8 - n_bytes
    promised = sum(_tensor_bytes(file, name, entry) for name, entry in header.items())
    if promised != held:
        raise _damaged(file, f"its tensors take {promised} bytes, but it holds {held}")


def _tensor_bytes(file: Path, name: str, entry: Any) -> int:
    if len(name) > MAX_NAME_LENGTH:
        raise _damaged(file, f"a tensor's name has {len(name)} characters")
    if not isinstance(entry, Mapping) or entry.get("dtype") not in _ITEM_BYTES:
        raise _damaged(file, f"tensor {name!r:.100} must be of {', '.join(_ITEM_BYTES)}")
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**48 for n in shape) or len(shape) > 8:
        raise _damaged(file, f"tensor {name!r:.100} has no shape that a tensor of an export has")
    return math.prod(shape) * _ITEM_BYTES[entry["dtype"]]


def _damaged(file: Path | str, why: object) -> ArtifactError:
    return ArtifactError(f"{file} is damaged: {why}; export the adapter again")
