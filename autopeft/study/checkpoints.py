"""The checkpoints of a study: which there are, and whether they still hold what was written.

A file is named `<trial>-<examples>.sha256-<digest>.safetensors`, and never changes. The digest (the first 32
hexadecimal digits of the SHA-256 of its bytes) tells a damaged file from a whole one without reading tensors. Of each
trial the last two stay, so that it can go back by one.
"""

import hashlib
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

N_KEPT = 2
"""Checkpoints of a trial that stay: the last, and the one to go back to."""
_N_DIGITS = 32
_NAME = re.compile(r"(?P<trial>\d+)-(?P<examples>\d+)\.sha256-(?P<digest>[0-9a-f]{32})\.safetensors")


class Saved(NamedTuple):
    """A checkpoint that is whole: how many examples its trial had trained on, and its bytes."""

    examples: int
    content: bytes


class Checkpoints:
    """The checkpoints in one folder.

    Args:
        path: The folder; `damaged/` in it takes what is set aside.
        write: Writes a file for good.
        remove: Removes one.
    """

    def __init__(self, path: Path, *, write: Callable[[Path, bytes], None], remove: Callable[[Path], None]) -> None:
        self.path = path
        self._write = write
        self._remove = remove
        self._known: dict[int, list[Path]] | None = None

    def save(self, trial: int, examples: int, content: bytes) -> Path:
        """Write a checkpoint, and let go of all but the one before it."""
        path = self.path / f"{trial}-{examples}.sha256-{_digest(content)}.safetensors"
        self._write(path, content)
        files = self._index().setdefault(trial, [])
        files[:] = sorted({*files, path}, key=_order)
        for old in files[:-N_KEPT]:
            self._remove(old)
        del files[:-N_KEPT]
        return path

    def files(self, trial: int) -> tuple[Path, ...]:
        """Return the files of a trial, by examples."""
        return tuple(self._index().get(trial, ()))

    def forget(self) -> None:
        """Look at the folder again when something is next asked: it has been changed."""
        self._known = None

    def _index(self) -> dict[int, list[Path]]:
        """Return the files of each trial; the folder of a large study is looked through once."""
        if self._known is None:
            self._known = {}
            found = self.path.iterdir() if self.path.is_dir() else ()
            for path in sorted((path for path in found if trial_of(path) is not None), key=_order):
                self._known.setdefault(_order(path)[0], []).append(path)
        return self._known

    def last(self, trial: int, *, up_to: int) -> Saved | None:
        """Return the last whole checkpoint of a trial up to a number of examples; damaged ones are set aside."""
        for path in reversed(self.files(trial)):
            _, examples, _ = _order(path)
            if examples <= up_to and (content := self._read(path)) is not None:
                return Saved(examples, content)
        return None

    def at(self, trial: int, examples: int) -> bytes | None:
        """Return the checkpoint that a trial left after a number of examples, where it is there and whole."""
        saved = self.last(trial, up_to=examples)
        return saved.content if saved is not None and saved.examples == examples else None

    def _read(self, path: Path) -> bytes | None:
        match, reason = _NAME.fullmatch(path.name), "it does not match its checksum"
        assert match is not None
        try:
            content = path.read_bytes()
            if _digest(content) == match["digest"]:
                return content
        except OSError as error:  # a bad block, say
            reason = f"it cannot be read ({error})"
        aside = path.parent / "damaged" / path.name
        with suppress(OSError):  # gone, or on a disk that takes no change
            aside.parent.mkdir(exist_ok=True)
            path.replace(aside)
        self._remove(path)  # wherever else it has a copy
        self._index()[int(match["trial"])].remove(path)
        logging.getLogger("autopeft").warning(
            f"the checkpoint of trial {match['trial']} after {match['examples']} examples is damaged: {reason}; it is "
            f"set aside as {aside}, and the trial goes back to the one before it, or to its start"
        )
        return None


def trial_of(path: Path) -> int | None:
    """Return the trial that a checkpoint's file belongs to, or None where it is no such file."""
    match = _NAME.fullmatch(path.name)
    return None if match is None else int(match["trial"])


def _order(path: Path) -> tuple[int, int, str]:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match["trial"]), int(match["examples"]), path.name


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_N_DIGITS]
