"""The local folder in which a study that lies at an address is worked on.

The address is the truth: what is only here was never counted, and goes when a search takes the study up again. A file
`.remote` names the address, so that the folder is known for what it is wherever it is opened.
"""

import secrets
from pathlib import Path

from autopeft.errors import StudyMismatchError
from autopeft.study.remote_copy import RemoteCopy, is_journal_part

_MARK = ".mirror"
_JOURNAL = "study.journal"
_PARTS = ("checkpoints", "adapters", "predictions", "samples", "logs")
"""Folders of a study in which a file, once it is whole, never changes but for an adapter's README.md."""
_copies: dict[Path, "WorkingCopy"] = {}


class WorkingCopy:
    """A folder and the address that it belongs to."""

    def __init__(self, path: Path, remote: RemoteCopy) -> None:
        self.path = path.resolve()
        self.remote = remote
        self._names: dict[str, int] = {}
        self._put: dict[str, tuple[int, int]] = {}  # size and time of change of what is known to be at the address

    @classmethod
    def make(cls, path: Path, uri: str) -> None:
        """Make a folder the working copy of an address.

        Raises:
            MissingDependencyError, StudyError: The address cannot be used.
            StudyMismatchError: The folder holds something else.
        """
        remote, mark = RemoteCopy(uri), path / _MARK
        if mark.is_file():
            if (known := mark.read_text(encoding="utf-8").strip()) != remote.uri:
                raise StudyMismatchError(
                    f"a working folder belongs to one address, but {path} belongs to {known} and not to {remote.uri}; "
                    "give another work_dir"
                )
        elif path.is_dir() and any(path.iterdir()):
            raise StudyMismatchError(
                f"a working folder is made by autopeft, but {path} has content of its own; give another work_dir"
            )
        else:
            path.mkdir(parents=True, exist_ok=True)
            mark.write_text(remote.uri + "\n", encoding="utf-8")
        _copies.setdefault(path.resolve(), cls(path, remote))

    # Searching ------------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Hold the address for one search, and make the folder what the address says.

        Raises:
            StudyLockedError: Another search holds it.
            StorageError: It cannot be reached.
        """
        self.remote.acquire()
        try:
            journal = self.pull(everything=True, exactly=True)
            if journal is not None:
                self.write_journal(journal)
        except BaseException:
            self.remote.release()
            raise

    def put(self, path: Path, content: bytes) -> None:
        """Bring a file to the address that has just been written here. Raises what `RemoteCopy.put` raises."""
        if not path.resolve().is_relative_to(self.path):
            return  # an export, say
        name = self._name(path)
        self.remote.put(name, content)
        self._known(name)

    def remove(self, path: Path) -> None:
        """Remove a file at the address."""
        self.remote.remove(self._name(path))

    def publish(self, *paths: Path) -> None:
        """Bring every file, or each of these, to the address that is not known to be there as it is."""
        for path in paths or sorted(self.path.rglob("*")):
            name = self._name(path)
            hidden = any(part.startswith(".") for part in Path(name).parts)
            ours = name == _JOURNAL or name.endswith((".tmp", ".lock")) or "damaged" in Path(name).parts
            if path.is_file() and not hidden and not ours and self._put.get(name) != _state(path):
                self.remote.put(name, path.read_bytes())
                self._known(name)

    # Reading --------------------------------------------------------------------------------------------------

    def pull(self, *, everything: bool, exactly: bool = False) -> bytes | None:
        """Bring what lies at the address here, but for the journal: return that, or None where there is none.

        Args:
            everything: Checkpoints and the weights of adapters too.
            exactly: Take away what is not at the address, and put the parts of the journal together there.
        """
        names = self._names = self.remote.names()
        if exactly:
            self._drop_all_but(names)
        for name, n_bytes in names.items():
            if not is_journal_part(name) and (everything or not _is_heavy(name)):
                self._bring(name, n_bytes)
        journal = self.remote.journal(names)
        if journal is not None and exactly:
            self.remote.compact_journal(names, journal)
        return journal

    def write_journal(self, content: bytes) -> None:
        """Have the journal here be the one at the address; no search may be writing it."""
        self._write(_JOURNAL, content)

    def names_in(self, prefix: str) -> set[str]:
        """Return the names of the files in a folder at the address, as it was when it was last looked at."""
        return {name.removeprefix(prefix) for name in self._names if name.startswith(prefix)}

    def pull_below(self, prefix: str) -> None:
        """Bring the files here whose names begin with a prefix."""
        for name, n_bytes in self.remote.names().items():
            if name.startswith(prefix):
                self._bring(name, n_bytes)

    def _bring(self, name: str, n_bytes: int) -> None:
        path = self.path / name
        stays = name.partition("/")[0] in _PARTS and not name.endswith(".md")
        if stays and path.is_file() and path.stat().st_size == n_bytes:
            self._known(name)
            return
        content = self.remote.read(name)
        if content is not None:  # removed meanwhile
            self._write(name, content)
            self._known(name)

    def _write(self, name: str, content: bytes) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")  # several may read the study at a time
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _drop_all_but(self, names: dict[str, int]) -> None:
        kept = {self.path / name for name in names}
        ours = [path for part in _PARTS for path in (self.path / part).rglob("*") if path.is_file()]
        for path in [self.path / "study.json", self.path / _JOURNAL, *ours]:
            if path not in kept:
                path.unlink(missing_ok=True)

    def _name(self, path: Path) -> str:
        return path.resolve().relative_to(self.path).as_posix()

    def _known(self, name: str) -> None:
        self._put[name] = _state(self.path / name)


def working_copy(path: Path) -> WorkingCopy | None:
    """Return what a folder is the working copy of, or None for a folder of its own."""
    known = _copies.get(path.resolve())
    mark = path / _MARK
    if known is None and mark.is_file():
        known = _copies.setdefault(
            path.resolve(), WorkingCopy(path, RemoteCopy(mark.read_text(encoding="utf-8").strip()))
        )
    return known


def _is_heavy(name: str) -> bool:
    return name.endswith(".safetensors")


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
