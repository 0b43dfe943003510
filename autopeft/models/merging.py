"""A trained design folded into its base model: a plain transformers folder, which needs neither autopeft nor peft.

Weights that a design added to, scaled or trained can hold the result; what a nonlinearity, a prompt or a gate does
cannot be written as a weight. Merging happens in fp32, on the CPU.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from autopeft.errors import ArtifactError, DesignError
from autopeft.models import peft_gate
from autopeft.models.artifact import DESCRIPTION_FILE, MERGED, Export, cast, find_dtype, read_export, rehearse
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base, open_checkpoint
from autopeft.models.loading import Checkpoint, quiet, read_tokenizer
from autopeft.models.quantization import dequantized_weights
from autopeft.spec.block import FOUR_BIT
from autopeft.spec.design import Design

_COPIED = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "LICENSE*")
"""Files of the base model that go along: how inputs are made, and terms."""
_CARD = """\
---
library_name: transformers
tags: [autopeft, merged]
---

# {design}, merged into {base}

A plain transformers model in {dtype}: what autopeft trained is folded into the weights of `{base}`. It answers as the
adapter does on its base, costs no more than the base to serve, and needs neither autopeft nor peft.

```python
from transformers import {auto_class}

model = {auto_class}.from_pretrained("path/to/this/folder")
```

- SHA-256 of the base model's weights and configuration: `{fingerprint}`. Its licence holds here too.
{labels}
## Design

```json
{blocks}
```

## Training

```json
{metadata}
```
"""


def merge(
    adapter: str | Path,
    output: str | Path,
    base_model: str | None = None,
    dtype: torch.dtype | str | None = None,
    *,
    dequantize: bool = False,
) -> Path:
    """Fold an exported adapter into its base model; arguments and errors as of `autopeft.merge`."""
    export, target, number_type = read_export(Path(adapter)), Path(output), find_dtype(dtype)
    if export.is_merged:
        raise ArtifactError(f"only an exported adapter can be merged, but {export.folder} is a merged model already")
    check_mergeable(export.design, dequantize=dequantize)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArtifactError(
            f"a merged model goes to a new or an empty folder, but {target} has content; choose another"
        )
    checkpoint = export.find_base(base_model)
    rehearse(export, checkpoint)
    base = _open(checkpoint, export.design)
    _restore(export, base).merge()
    cast(base.model, number_type)
    with _written_as_a_whole(target) as folder:
        _write(base, checkpoint, export, folder)
    return target


def check_mergeable(design: Design, *, dequantize: bool = False) -> None:
    """Raise `DesignError` where a design cannot be folded into weights, with the block and the reason."""
    for block in design.blocks:
        if not block.mergeable:
            raise DesignError(
                f"{block.describe()} cannot be merged: {block.merge_obstacle}; serve the adapter as it is, with "
                "autopeft.load"
            )
    if design.quantization == "none" or (dequantize and design.quantization in FOUR_BIT):
        return
    if design.quantization in FOUR_BIT:
        raise DesignError(
            f"a design on a base in {design.quantization} cannot be merged: codes of 4 bits cannot hold the sum; give "
            "dequantize=True (--dequantize) to merge into the weights that its products saw, as large as unquantized "
            "ones, or serve the adapter as it is"
        )
    raise DesignError(
        f"a design on a base in {design.quantization} cannot be merged: its products quantize the activations too, "
        "which a plain model does not do; serve the adapter as it is, with autopeft.load"
    )


def _open(checkpoint: Checkpoint, design: Design) -> Base:
    """Return an unquantized base, whose weights are those that the products of the trained one saw."""
    base = open_checkpoint(checkpoint, quantization="none", device_map={"": "cpu"})
    if design.quantization != "none":
        stored = open_checkpoint(checkpoint, quantization=design.quantization, device_map={"": "cpu"})
        with torch.no_grad():
            for path, weight in dequantized_weights(stored.model):
                plain = base.model.get_submodule(path)  # GPT-2's Conv1D keeps its weight as [in, out]
                plain.weight.copy_(weight if isinstance(plain, torch.nn.Linear) else weight.T)
    return base


def _restore(export: Export, base: Base) -> Attached:
    """Attach an exported design with its trained values."""
    state = export.read_state(base.model)
    attached = attach(base, Design(blocks=export.design.blocks), restored=True, inference=True)
    if state is None:
        peft_gate.restore(base.model, export.read_file())
    else:
        attached.load_state(state)
    return attached


def _write(base: Base, checkpoint: Checkpoint, export: Export, folder: Path) -> None:
    with quiet():
        base.model.save_pretrained(folder)
    tokenizer = read_tokenizer(checkpoint.folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    for pattern in _COPIED:
        for file in checkpoint.folder.glob(pattern):
            shutil.copy(file, folder / file.name)
    description = {**export.description, "format": MERGED}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2, sort_keys=True), encoding="utf-8")
    (folder / "README.md").write_text(_card(export, dtype=base.model.dtype), encoding="utf-8")


def _card(export: Export, *, dtype: torch.dtype) -> str:
    """Return the README of a merged model: what it was made from, and how to open it; no path of this machine."""
    known = Path(export.base_model).name if Path(export.base_model).exists() else export.base_model
    return _CARD.format(
        design=export.design.describe(),
        base=known,
        dtype=str(dtype).removeprefix("torch."),
        auto_class=export.head.auto_class,
        labels=f"- Classes: {', '.join(export.head.labels)}.\n" if export.head.labels else "",
        fingerprint=export.fingerprint,
        blocks=json.dumps(export.design.to_dict()),
        metadata=json.dumps(export.description["metadata"], indent=2, sort_keys=True),
    )


@contextmanager
def _written_as_a_whole(target: Path) -> Iterator[Path]:
    """Give a folder beside the target that takes its place at the end, or goes away where something fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        yield folder
        folder.replace(target)
