"""Checkpoints: one safetensors file with adapter, optimizer and counters; a few MB, no pickle, checksummed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import safetensors
import safetensors.torch
import torch

from autopeft.errors import ArtifactError

SCHEMA_VERSION = 1
_FORMAT = "autopeft-checkpoint"


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Where a trial stands.

    Attributes:
        design: Key of the design.
        seed: Of the trial.
        examples: Examples trained on.
        full: Examples of the full training, which the schedule depends on.
        adapter: Every trainable tensor (and buffers that new modules own) by name.
        optimizer: Moments and step counts by name, and what techniques remember; empty once the trial trained in full.
    """

    design: str
    seed: int
    examples: int
    full: int
    adapter: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the checkpoint as a safetensors file."""
        tensors = {f"adapter/{name}": tensor for name, tensor in self.adapter.items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        header = {
            "format": _FORMAT,
            "schema_version": SCHEMA_VERSION,
            "counters": {"design": self.design, "seed": self.seed, "examples": self.examples, "full": self.full},
        }
        header["sha256"] = _checksum(tensors, header)
        # One entry alone: safetensors writes several in random order, and equal checkpoints should be equal bytes.
        return safetensors.torch.save(tensors, {"autopeft": json.dumps(header, sort_keys=True)})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Checkpoint":
        """Read a checkpoint back.

        Raises:
            ArtifactError: The bytes are damaged, or not a checkpoint of this version.
        """
        try:
            tensors = safetensors.torch.load(content)
            header_bytes = int.from_bytes(content[:8], "little")
            header = json.loads(json.loads(content[8 : 8 + header_bytes])["__metadata__"]["autopeft"])
            expected = header.pop("sha256")
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"a checkpoint must be a safetensors file that autopeft wrote, but this one ({len(content)} bytes) is "
                f"damaged: {error}; start the trial again"
            ) from None
        if (header.get("format"), header.get("schema_version")) != (_FORMAT, SCHEMA_VERSION):
            raise ArtifactError(
                f"a checkpoint must be {_FORMAT} version {SCHEMA_VERSION}, but got {header.get('format')} version "
                f"{header.get('schema_version')}; continue with the autopeft that wrote it"
            )
        if _checksum(tensors, header) != expected:
            raise ArtifactError(
                "a checkpoint must match its checksum, but this one does not: it is damaged; start the trial again"
            )
        return cls(**header["counters"], adapter=_part(tensors, "adapter/"), optimizer=_part(tensors, "optimizer/"))

    def check(self, *, design: str, seed: int, full: int, examples: int | None) -> None:
        """Raise `ArtifactError` where the checkpoint belongs to another trial or another place in its training."""
        wanted = {"design": design, "seed": seed, "full": full, "examples": examples}
        for name, value in wanted.items():
            if value is not None and getattr(self, name) != value:
                raise ArtifactError(
                    f"a segment must continue its own trial, but its checkpoint has {name}={getattr(self, name)}, and "
                    f"the segment {name}={value}; start the trial again"
                )


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _checksum(tensors: Mapping[str, torch.Tensor], header: Mapping[str, object]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
