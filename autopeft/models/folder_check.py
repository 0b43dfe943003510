"""Whether a model's folder holds a checkpoint that autopeft can train on; what it holds instead, and the way out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from autopeft.errors import ModelError
from autopeft.spec.messages import first_line, listed

_OTHER_FORMATS = {
    (".bin", ".pt", ".pth", ".ckpt"): (
        "a pickle can run any code, so autopeft reads none; convert it where you trust it: "
        "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder), or the AutoModel of your task"
    ),
    (".gguf",): "GGUF is for running a model; take the model that it was made from",
    (".onnx", ".h5", ".msgpack", ".tflite", ".mlmodel", ".ot"): "take the original PyTorch model",
}
"""What to do with weights of other formats, by the end of their names."""
_BITS = {"eetq": 8, "fbgemm_fp8": 8, "fp8": 8, "mxfp8": 8, "mxfp4": 4, "nvfp4": 4, "awq": 4, "bitnet": 2}
"""Bits of methods that have no setting for it."""
_LFS = b"version https://git-lfs"


def check_config(name: str, folder: Path, *, trust_remote_code: bool) -> Mapping[str, Any]:
    """Return the configuration of a model.

    Raises:
        ModelError: There is none, it is damaged, or the model wants to run its own code.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"a model folder must have a config.json, but {name!r} has none; {_instead(folder, file)}")
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"config.json must be JSON, but that of {name!r} is not: {error}; fetch the model again"
        ) from None
    if not isinstance(config, dict):
        raise ModelError(f"config.json must hold an object, but that of {name!r} holds a {type(config).__name__}")
    if not trust_remote_code and "auto_map" in config and not _is_native(config):
        raise ModelError(
            f"{name!r} wants to run its own Python code, which autopeft does not do unasked; read that code, and if "
            "you trust it set trust_remote_code=True"
        )
    return config


def check_weights(name: str, folder: Path, files: Sequence[Path], config: Mapping[str, Any]) -> None:
    """Check the files that weights are in, without reading any weight.

    Raises:
        ModelError: There are none, one is missing or damaged, they are an adapter's, or they are quantized.
    """
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"model must be a base model, but {name!r} is an adapter's folder: {_adapter(folder)}")
    if not files:
        raise ModelError(
            f"a model folder must have weights in model.safetensors, but {name!r} has none; "
            f"{_instead(folder, folder / 'model.safetensors')}"
        )
    for path in files:
        if not path.is_file():
            broken = f", a link to {path.readlink()}, where nothing is" if path.is_symlink() else ""
            raise ModelError(
                f"every weight file must be there, but {name!r} lacks {path.name}{broken}; fetch the model again"
            )
        _check_file(name, path)
    quantization = config.get("quantization_config") or config.get("compression_config")
    if quantization:
        raise ModelError(
            f"weights must be stored unquantized, but {name!r} is stored {_how_stored(quantization)}; give the model "
            f"that it was made from, and quantization: nf4 in the space where it is to take 4 bits"
        )


def _check_file(name: str, path: Path) -> None:
    """Check the header, which says how long the file is."""
    try:
        with safe_open(path, framework="numpy"):
            return
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            is_pointer = file.read(len(_LFS)) == _LFS
        why = "it is a pointer of Git LFS (git lfs pull fetches the file)" if is_pointer else first_line(error)
        raise ModelError(
            f"every weight file must be whole, but {path.name} of {name!r} is not: {why}; fetch it again"
        ) from None


def _how_stored(quantization: Any) -> str:
    """Say how many bits a weight takes, where that is known, and by which method."""
    settings = quantization if isinstance(quantization, Mapping) else {}
    method = str(settings.get("quant_method", "an unknown method"))
    bits = settings.get("bits", settings.get("nbits", settings.get("w_bit", _BITS.get(method))))
    if settings.get("load_in_4bit") or settings.get("_load_in_4bit"):
        method, bits = f"bitsandbytes ({settings.get('bnb_4bit_quant_type', 'fp4')})", 4
    elif settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        method, bits = "bitsandbytes", 8
    elif isinstance(groups := settings.get("config_groups"), Mapping):  # compressed-tensors
        weights = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
        found = {each.get("num_bits") for each in weights if isinstance(each, Mapping)}
        bits = found.pop() if len(found) == 1 else bits
    elif isinstance(kind := settings.get("weights"), str):  # quanto: int8, int4, float8
        bits = "".join(filter(str.isdigit, kind)) or bits
    return f"in {bits} bits by {method}" if bits else f"quantized by {method}"


def _instead(folder: Path, missing: Path) -> str:
    """Say what a folder holds in the place of a file that it should have, and the way out."""
    if missing.is_symlink():
        return f"it is a link to {missing.readlink()}, where nothing is: fetch the model again"
    if (folder / "adapter_config.json").is_file() or (folder / "autopeft.json").is_file():
        return _adapter(folder)
    if missing.name == "config.json":
        inner = [path.parent for path in folder.glob("*/config.json")]
        inner.sort(key=lambda path: (any(path.glob("model*.safetensors")), path.stat().st_mtime, path.name))
        if inner:
            return f"its folder {inner[-1].name!r} has one: give {str(inner[-1])!r}"
    names = sorted(path.name for path in folder.iterdir())
    for ends, way in _OTHER_FORMATS.items():
        if found := [name for name in names if name.endswith(ends) and name != "training_args.bin"]:
            return f"it has {listed(found)}: {way}"
    if found := [name for name in names if name.endswith(".safetensors")]:
        return f"it has {listed(found)}: save the model with save_pretrained, or rename the file"
    return "give a folder that save_pretrained wrote"


def _adapter(folder: Path) -> str:
    """Say which base model an adapter's folder names."""
    for file in ("adapter_config.json", "autopeft.json"):
        try:
            said = json.loads((folder / file).read_text(encoding="utf-8"))
            base = said.get("base_model_name_or_path") or said["base_model"]["name"]
            return f"it holds an adapter: give its base model, {base!r}, or merge the adapter into it"
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            continue
    return "it holds an adapter: give its base model, or merge the adapter into it"


def _is_native(config: dict[str, Any]) -> bool:
    """Return whether transformers has code of its own for this model type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING
