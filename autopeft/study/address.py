"""Files at an address such as `s3://bucket/runs/reviews`, or in a folder; each request that fails is tried again."""

import errno
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec

from autopeft.errors import MissingDependencyError, StorageError, StudyError
from autopeft.spec.location import is_uri

T = TypeVar("T")

PAUSES_SECONDS = (0.5, 2.0)
"""Before a request that failed is tried again."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What a file system says that has no hard links."""


class Address:
    """Files below an address.

    Args:
        uri: As fsspec reads it.

    Attributes:
        is_held: Whether the folder is there, and is not to be made anew where it is gone.

    Raises:
        MissingDependencyError: The package that the address needs is not installed.
        StudyError: No storage is known by its name.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        try:
            self._files, root = fsspec.core.url_to_fs(self.uri)
        except ImportError as error:
            raise MissingDependencyError(f"{self.uri} needs a package that is not installed: {error}") from None
        except ValueError as error:
            raise StudyError(
                f"output_dir must be a folder or an address that fsspec knows, but got {self.uri!r} ({error})"
            ) from None
        self._root = str(root).rstrip("/")
        self.is_held = False
        self._token = uuid.uuid4().hex[:8]

    def put(self, name: str, content: bytes) -> None:
        """Write a file: whoever reads it sees the old content or the new. Raises `StorageError`."""
        self._write(name, lambda: self._replace(name, content))

    def create(self, name: str, content: bytes) -> None:
        """Write a file that must not be there yet. Raises `StorageError`, or FileExistsError."""
        self._write(name, lambda: self._create(name, content))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there. Raises `StorageError`."""

        def remove() -> None:
            with suppress(FileNotFoundError):
                self._files.rm_file(self._at(name))

        self._try(f"remove {name}", remove)

    def read(self, name: str) -> bytes | None:
        """Return a file's content, or None where there is none."""
        try:
            return self._try(f"read {name}", lambda: bytes(self._files.cat_file(self._at(name))))
        except FileNotFoundError:
            return None

    def names(self) -> dict[str, int]:
        """Return the bytes of each file by its name, unfinished ones left out."""

        def find() -> dict[str, Any]:
            self._files.invalidate_cache()
            with suppress(FileNotFoundError):
                return dict(self._files.find(self._root, detail=True))
            return {}

        found = {}
        for path, info in self._try("list", find).items():
            name = str(path).removeprefix(self._root).lstrip("/")
            parts = PurePosixPath(name).parts
            if ".." in parts or not parts or name.endswith(".tmp"):
                continue  # a name that would leave the working folder is nobody's that we know
            found[name] = int(info.get("size") or 0)
        return found

    def check(self) -> None:
        """Raise `StorageError` where the folder that is held was moved away, or unmounted."""
        if self.is_held and self._is_local() and not Path(self._root).is_dir():
            raise StorageError(
                f"{self.uri} must be reachable, but its folder is gone; what stood there is whole: once it is back, "
                "the same command goes on"
            )

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _is_local(self) -> bool:
        protocol = self._files.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def _replace(self, name: str, content: bytes) -> None:
        """Write a file at once: object stores do, and on a disk a finished one takes the old one's place."""
        if not self._is_local():
            self._pipe(self._at(name), content)
            return
        temporary = f"{self._at(name)}.{self._token}.tmp"
        try:
            self._pipe(temporary, content)
            Path(temporary).replace(self._at(name))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _create(self, name: str, content: bytes) -> None:
        if not self._is_local():
            self._pipe(self._at(name), content, mode="create")
            return
        path, temporary = Path(self._at(name)), Path(f"{self._at(name)}.{self._token}.tmp")
        self._make_folder(str(path))
        try:
            temporary.write_bytes(content)
            os.link(temporary, path)  # whole or not at all; fsspec would look first, and then write
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with path.open("xb") as file:
                file.write(content)
        finally:
            temporary.unlink(missing_ok=True)

    def _pipe(self, path: str, content: bytes, **options: Any) -> None:
        try:
            self._files.pipe_file(path, content, **options)
        except FileNotFoundError:  # a storage with folders that must be made
            self._make_folder(path)
            self._files.pipe_file(path, content, **options)

    def _make_folder(self, path: str) -> None:
        """Make the folder of a file; that of the study itself only where it is not held yet."""
        if not self._is_local():
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            return
        folder, root = Path(path).parent, Path(self._root)
        if not self.is_held:
            root.mkdir(parents=True, exist_ok=True)
        for each in reversed([folder, *folder.parents]):
            if root in each.parents:
                each.mkdir(exist_ok=True)

    def _write(self, name: str, request: Callable[[], None]) -> None:
        """Make a request that writes: folders that are not there are no answer, but that a file is there."""
        self._try(f"write {name}", request, answers=(FileExistsError,))

    def _try(
        self,
        what: str,
        request: Callable[[], T],
        *,
        answers: tuple[type[OSError], ...] = (FileNotFoundError, FileExistsError),
    ) -> T:
        for pause in (*PAUSES_SECONDS, None):
            try:
                return request()
            except answers:
                raise
            except Exception as error:  # each storage has errors of its own
                if pause is None or isinstance(error, PermissionError):
                    raise StorageError(
                        f"{self.uri} must be reachable, but to {what} failed with {type(error).__name__}: {error}; "
                        "what stands there is whole: once it can be written to, the same command goes on"
                    ) from error
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")


@contextmanager
def local_export(location: str | Path) -> Iterator[Path]:
    """Give an exported folder for as long as the block runs: the one at a path, or a copy of the one at an address.

    Raises:
        StorageError: There is nothing at the address.
    """
    if not is_uri(location):
        yield Path(location)
        return
    with tempfile.TemporaryDirectory(prefix="autopeft-") as folder:
        for name, content in _contents(Address(str(location))):
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield Path(folder)


def _contents(address: Address) -> Iterator[tuple[str, bytes]]:
    names = address.names()
    if not names:
        raise StorageError(f"a folder at an address must hold files, but there are none at {address.uri}")
    for name in names:
        content = address.read(name)
        if content is not None:
            yield name, content
