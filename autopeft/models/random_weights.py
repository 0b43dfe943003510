"""A checkpoint with random weights in the place of one that has none: as large and as fast, and it knows nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from autopeft.models.loading import Checkpoint, quiet, read
from autopeft.models.model_files import has_weights, locate
from autopeft.spec.model import Head


@contextmanager
def with_weights(
    name: str, head: Head, *, revision: str | None = None, trust_remote_code: bool = False
) -> Iterator[str]:
    """Give the folder of a checkpoint that has weights, for as long as the block lasts: its own, or random ones.

    Weights that are on this machine are used; none are fetched. Random ones are drawn as the architecture starts
    its training, and stored in a temporary folder: fp32, four bytes a parameter in memory and on disk.

    Args:
        name: Local folder, or hub id.
        head: What the task asks of the model.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether to run Python code that the model brings.

    Raises:
        ModelError: There is no such model, or it cannot be built.
    """
    folder = locate(name, revision=revision, trust_remote_code=trust_remote_code, needs_weights=False)
    if has_weights(folder):
        yield str(folder)
        return
    checkpoint = Checkpoint(name=name, folder=folder, head=head, trust_remote_code=trust_remote_code)
    shapes, _ = read(checkpoint, dtype=torch.float32, device_map={"": "meta"})
    with TemporaryDirectory() as parent:
        made = Path(parent) / folder.name
        with quiet(), torch.random.fork_rng(devices=[]):
            type(shapes)(shapes.config).save_pretrained(made)
        yield str(made)
