"""The exported folder of a trained design: written as bytes by workers, opened by `load`.

A design that one stock technique of peft makes is a stock peft folder, which
`PeftModel.from_pretrained` opens; any other has its tensors in `adapter.safetensors`. Either way
`autopeft.json` beside them says what the design is, and of which base model it is the adapter.
Nothing in it is ever unpickled.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from autopeft.errors import ArtifactError, AutopeftError, DesignError
from autopeft.models import adapter_files, peft_gate
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base, open_checkpoint
from autopeft.models.loading import Checkpoint, read_tokenizer
from autopeft.models.model_files import fingerprint, locate
from autopeft.models.technique import Technique
from autopeft.spec.block import block_class, block_kinds, packages_of
from autopeft.spec.design import Design
from autopeft.spec.model import Head

SCHEMA_VERSION = 1
DESCRIPTION_FILE = "autopeft.json"
TENSOR_FILE = "adapter.safetensors"
MERGED = "merged"
"""The `format` of a model into which a design was folded."""
FORMATS = ("peft", "autopeft", MERGED)
_AUTO_CLASS = re.compile(r"AutoModel(For[A-Za-z0-9]{1,64})?")
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}==[A-Za-z0-9.+!_-]{1,99}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_MAX_NAME_LENGTH = 4096


def pack(attached: Attached, *, metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of an export, by name.

    Args:
        attached: The trained design, still attached.
        metadata: What is worth knowing of the training, JSON-ready: scores, steps, data.
    """
    base = attached.base
    stock = attached.design.exports_to_peft(base.summary) and not _shares_names(base)
    description = {
        "schema_version": SCHEMA_VERSION,
        "format": "peft" if stock else "autopeft",
        "design": attached.design.to_dict(),
        "packages": packages_of(attached.design.kinds),
        "base_model": {
            "name": base.summary.name,
            "fingerprint": base.summary.fingerprint,
            "auto_class": base.head.auto_class,
            "labels": list(base.head.labels),
            **_padding(base),
        },
        "metadata": dict(metadata),
    }
    files = _stock_files(attached) if stock else {TENSOR_FILE: _to_bytes(attached.exported_tensors())}
    return {
        DESCRIPTION_FILE: json.dumps(description, indent=2, sort_keys=True).encode(),
        **files,
    }


def _shares_names(base: Base) -> bool:
    """Return whether the name of a new module is the end of another module's path: peft would save both by it."""
    ends = tuple(f".{path}" for path in base.summary.new_modules)
    return bool(ends) and any(path.endswith(ends) for path, _ in base.model.named_modules())


def _padding(base: Base) -> dict[str, Any]:
    """Return the token by which a decoder's classifier finds the end of a text, for who opens the folder without us."""
    finds_ends = base.summary.is_decoder and base.head.labels
    return {"pad_token_id": base.model.config.pad_token_id} if finds_ends else {}


def load(
    path: str | Path,
    base_model: str | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
) -> tuple[torch.nn.Module, Any]:
    """Open an exported folder, or one that `merge` wrote; arguments and answer are those of `autopeft.load`.

    Raises:
        ArtifactError: The folder is incomplete or damaged, or the base is not the one it was made for.
        ModelError: The base cannot be loaded.
    """
    export = read_export(Path(path))
    number_type = find_dtype(dtype)
    checkpoint = export.find_base(base_model)
    rehearse(export, checkpoint)
    quantization = "none" if export.is_merged else export.design.quantization
    quantized = quantization != "none"
    base = open_checkpoint(
        checkpoint,
        quantization=quantization,
        compute_dtype=number_type if quantized else torch.float32,
        dtype=torch.float32 if quantized else number_type,
        device_map={"": "cpu"} if device_map is None else _device_map(device_map),
    )
    model = base.model if export.is_merged else _attach_trained(base, export)
    if not quantized:
        cast(model, number_type)
    base.model.config.autopeft = export.description  # who has the model knows what it was trained for
    return model.requires_grad_(False).eval(), read_tokenizer(checkpoint.folder)


def rehearse(export: "Export", checkpoint: Checkpoint) -> None:
    """Open an export on the meta device, where nothing takes memory: what does not fit is refused before loading.

    Raises:
        ArtifactError, DesignError, ModelError: The design does not fit the base model, or the tensors the design.
    """
    if not export.is_merged:
        export.read_file()  # damage shows at once
    base = open_checkpoint(checkpoint, quantization="none", device_map={"": "meta"})
    if export.is_merged:
        return
    try:
        state = export.read_state(base.model)
        if state is None:
            peft_gate.check_stock(export.read_stock_settings(), export.read_file())
        else:
            attach(base, export.design, restored=True, inference=True).load_state(state)
    except (AutopeftError, torch.OutOfMemoryError):
        raise
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        raise ArtifactError(f"{export.folder} cannot be opened: {error}; export the adapter again") from error


def _attach_trained(base: Base, export: "Export") -> torch.nn.Module:
    """Return the base's model with the trained design, which peft attaches where only it knows the names."""
    state = export.read_state(base.model)
    if state is None:
        return _open_stock(base.model, export)
    attached = attach(base, export.design, restored=True, inference=True)
    attached.load_state(state)
    model: torch.nn.Module = attached.model
    return model


@dataclass(frozen=True, kw_only=True)
class Export:
    """What an exported folder says of itself.

    Attributes:
        folder: Where it is.
        description: All that `autopeft.json` says.
        head: What the base model had on top.
        base_model: Hub id or folder of the base model.
        fingerprint: Of the base model.
        is_stock: Whether peft can open it.
        is_merged: Whether it is a plain model, into which the design was folded.
    """

    folder: Path
    description: Mapping[str, Any]
    design: Design
    head: Head
    base_model: str
    fingerprint: str
    is_stock: bool
    is_merged: bool

    def find_base(self, base_model: str | None = None) -> Checkpoint:
        """Return the files of the base model, or of the merged one.

        Args:
            base_model: Where they are now, if not where they were.

        Raises:
            ArtifactError: They are not those that the adapter was trained on.
            ModelError: There are none.
        """
        if self.is_merged:
            return Checkpoint(name=str(self.folder), folder=locate(str(self.folder.absolute())), head=self.head)
        name = base_model or self.base_model
        folder = locate(name)
        if fingerprint(folder) != self.fingerprint:
            raise ArtifactError(
                f"an adapter fits only the base model that it was trained on, but {name!r} has other weights or "
                "another configuration; give the right one as base_model"
            )
        return Checkpoint(name=name, folder=folder, head=self.head)

    def read_state(self, model: Any) -> dict[str, torch.Tensor] | None:
        """Return the tensors by their path in the attached model, or None where only peft knows its names.

        Raises:
            ArtifactError: They are damaged, or not there.
        """
        if not self.is_stock:
            return self.read_file()
        (kind,) = self.design.kinds
        technique = block_class(kind)
        assert issubclass(technique, Technique)
        return technique.from_peft(self.read_file(), model)

    def read_file(self) -> dict[str, torch.Tensor]:
        """Return the tensors as they are named in their file. Raises ArtifactError where it is damaged, or not there.

        Those of a stock adapter have peft's names; a folder with a pickle in the place of the file is refused.
        """
        return read_tensors(self.folder, peft_gate.TENSOR_FILE if self.is_stock else TENSOR_FILE)

    def read_stock_settings(self) -> dict[str, Any]:
        """Return peft's own description of the adapter. Raises ArtifactError where it is damaged, or not there."""
        return _read_json(self.folder, peft_gate.CONFIG_FILE)


def read_export(folder: Path) -> Export:
    """Return what an exported folder says of itself.

    Raises:
        ArtifactError: The folder is not an export, or is damaged.
    """
    description = read_description(folder)
    try:
        origin, form = description["base_model"], description["format"]
        name, auto_class, labels = origin["name"], origin["auto_class"], origin["labels"]
        _require(form in FORMATS, "format", form)
        _require(isinstance(name, str) and "\0" not in name and 0 < len(name) <= _MAX_NAME_LENGTH, "name", name)
        _require(_is_like(_AUTO_CLASS, auto_class), "auto_class", auto_class)
        _require(_is_like(_FINGERPRINT, origin["fingerprint"]), "fingerprint", origin["fingerprint"])
        _require(isinstance(labels, list) and all(isinstance(label, str) for label in labels), "labels", labels)
        _require(len(set(labels)) == len(labels), "labels", labels)
        _require_techniques(folder, description)
        design = Design.from_dict(description["design"])
        _require(form != "peft" or len(design.kinds) == 1, "design", "several techniques in a stock adapter")
        return Export(
            folder=folder,
            description=description,
            design=design,
            head=Head(auto_class=auto_class, labels=tuple(labels)),
            base_model=name,
            fingerprint=origin["fingerprint"],
            is_stock=form == "peft",
            is_merged=form == MERGED,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, AutopeftError) and not isinstance(error, DesignError):
            raise
        raise ArtifactError(
            f"{DESCRIPTION_FILE} of {folder} is damaged: {error!r:.500}; export the adapter again"
        ) from error


def _require(holds: bool, key: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{key} cannot be {value!r:.100}")


def _is_like(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _require_techniques(folder: Path, description: Mapping[str, Any]) -> None:
    """Raise `ArtifactError` where a technique of the design comes from a package that is not installed here."""
    kinds = {kind for block in description["design"]["blocks"] for kind in block}
    if unknown := sorted(kinds - set(block_kinds())):
        package = description.get("packages", {}).get(unknown[0])
        named = _is_like(_PACKAGE, package)
        way = f"run pip install {package}, if you trust it" if named else "import the module that registers it first"
        raise ArtifactError(
            f"{folder} needs the technique {unknown[0]!r:.100}, which autopeft does not know here; {way}"
        )


def _stock_files(attached: Attached) -> dict[str, bytes]:
    (kind,) = attached.design.kinds
    technique = block_class(kind)
    assert issubclass(technique, Technique)
    settings, tensors = technique.to_peft(attached.design.blocks, attached.sites[kind])
    summary = attached.base.summary
    new = tuple(f"{path}." for path in summary.new_modules)
    return peft_gate.stock_files(
        settings,
        tensors,
        {name: tensor for name, tensor in attached.state().items() if name.startswith(new)},
        modules_to_save=summary.new_modules,
        base_model=summary.name,
        auto_class=attached.base.head.auto_class,
    )


def _open_stock(model: Any, export: "Export") -> torch.nn.Module:
    try:
        return peft_gate.open_stock(model, export.folder, export.read_file())
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError | AutopeftError):
            raise
        raise ArtifactError(f"peft cannot open the adapter in {export.folder}: {error}; export it again") from error


def read_description(folder: Path) -> dict[str, Any]:
    """Return what `autopeft.json` of an exported folder says: its design, its base model, its metadata.

    Raises:
        ArtifactError: The folder is not an export, or is damaged.
    """
    if not _is_folder(folder):
        raise ArtifactError(f"an exported adapter is a folder, but no folder is at {str(folder)!r}; check the path")
    if adapter_files.find_file(folder, DESCRIPTION_FILE) is None:
        hint = ""
        if (folder / peft_gate.CONFIG_FILE).is_file():
            hint = "; this is a stock peft folder of other origin: open it with peft.PeftModel.from_pretrained"
        raise ArtifactError(f"an exported adapter must have {DESCRIPTION_FILE}, but {str(folder)!r} has none{hint}")
    description = _read_json(folder, DESCRIPTION_FILE)
    version = description.get("schema_version")
    if version is None:
        raise ArtifactError(f"{DESCRIPTION_FILE} of {folder} is damaged: no schema_version; export the adapter again")
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"schema_version of {folder / DESCRIPTION_FILE} must be {SCHEMA_VERSION}, but is {version!r:.100}; use the "
            "autopeft that wrote it"
        )
    return description


def read_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of an exported folder's file. Raises ArtifactError where it is damaged, or not there."""
    file = adapter_files.find_file(folder, name)
    if file is None:
        raise ArtifactError(
            f"an exported adapter must have its tensors, but {folder / name} is not there; export it again"
        )
    return adapter_files.read_tensors(file)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    file = adapter_files.find_file(folder, name)
    if file is None:
        raise ArtifactError(f"an exported adapter must have {name}, but {folder} has none; export it again")
    return adapter_files.read_json(file)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that no system takes
        return False


def _to_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    copies = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, metadata={"format": "pt"})


def cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give parameters a dtype, and no buffers: rotary frequencies stay in fp32, as transformers keeps them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def find_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """Return a floating-point dtype by its name; fp32 for None. Raises ArtifactError."""
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found is None and dtype is None:
        return torch.float32
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ArtifactError(f"dtype must be a floating-point dtype such as 'bfloat16', but got {dtype!r}")
    return found


def _device_map(device_map: Any) -> Any:
    """Return transformers' form: one device becomes a map of the whole model."""
    if isinstance(device_map, str) and device_map not in ("auto", "balanced", "balanced_low_0", "sequential"):
        return {"": device_map}
    return {"": device_map} if isinstance(device_map, torch.device | int) else device_map
