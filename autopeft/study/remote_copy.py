"""The remote copy of a study at an address such as `s3://bucket/runs/reviews`: it survives the loss of the machine.

A search works in a local folder; what it writes for good counts once it is at the address too, and the address is
what the next search begins from, wherever that runs. Object stores cannot append, so the journal lies there in parts:
`journal/<offset>` holds what was appended at that byte, and is never written over by another search.
"""

import hashlib
from contextlib import suppress

from autopeft.errors import StudyLockedError
from autopeft.study.address import Address
from autopeft.study.lease import Lease, Mark
from autopeft.study.process import ProcessMark

LOCK = "lock.json"
_JOURNAL = "journal/"
_N_DIGITS = 15


class RemoteCopy:
    """Files of one study at an address.

    Args:
        uri: Of the study, as fsspec reads it.

    Attributes:
        lease: Which search may write it.

    Raises:
        MissingDependencyError: The package that the address needs is not installed.
        StudyError: No storage is known by its name.
    """

    def __init__(self, uri: str) -> None:
        self._address = Address(uri)
        self.uri = self._address.uri
        self.lease = Lease(AddressPlace(self._address))
        self._parts: dict[str, bytes] = {}

    # Files ----------------------------------------------------------------------------------------------------

    def put(self, name: str, content: bytes) -> None:
        """Write a file: whoever reads it sees the old content or the new.

        Raises:
            StorageError: It cannot be written.
            StudyLockedError: Another search has taken this one's place.
        """
        self._check_place()
        self._address.put(name, content)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there. Raises what `put` raises."""
        self._check_place()
        self._address.remove(name)

    def read(self, name: str) -> bytes | None:
        """Return a file's content, or None where there is none."""
        return self._address.read(name)

    def names(self) -> dict[str, int]:
        """Return the bytes of each file by its name, the lock and unfinished ones left out."""
        found = self._address.names()
        found.pop(LOCK, None)
        return found

    def append_journal(self, offset: int, content: bytes) -> None:
        """Write what was appended to the journal at an offset; what another search has written there stays.

        Raises:
            StorageError: It cannot be written.
            StudyLockedError: Another search writes the study.
        """
        self._check_place()
        name = _part(offset)
        try:
            self._address.create(name, content)
        except FileExistsError:
            if self.read(name) != content:  # it is ours where an answer was lost
                raise StudyLockedError(
                    f"one search at a time may write a study, but another one has written {name} at {self.uri}; this "
                    "one ends here, and the same command goes on with what stands there"
                ) from None

    def journal(self, names: dict[str, int]) -> bytes | None:
        """Return the journal, put together from its parts; None where there is none. Known parts are not read again.

        Where one part is missing, what comes after it is left out: it says nothing without what was before.
        """
        content = bytearray()
        parts = sorted(name for name in names if is_journal_part(name))
        known, self._parts = self._parts, {}
        for name in parts:
            part = known.get(name)
            # The first one is always read: it tells a study that was begun anew from the one that was known.
            if part is None or len(part) != names[name] or name == parts[0]:
                part = self.read(name)
                known = known if part == known.get(name) or name != parts[0] else {}
            offset = int(name.removeprefix(_JOURNAL))
            if part is None or offset > len(content):
                break
            self._parts[name] = part
            content += part[len(content) - offset :]
        return bytes(content) if parts else None

    def compact_journal(self, names: dict[str, int], content: bytes) -> None:
        """Put one part in the place of many; stopped anywhere, it leaves the journal whole."""
        parts = sorted(name for name in names if is_journal_part(name))
        if len(parts) > 1:
            self.put(_part(0), content)
            for name in parts:
                if name != _part(0):
                    self.remove(name)

    # The lease ------------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Hold the study for one search, and say so from time to time until `release`.

        Raises:
            StudyLockedError: Another search holds it, and lives.
            StorageError: The address cannot be reached.
        """
        self.lease.acquire()
        self._address.is_held = True

    def release(self) -> None:
        """Give the study back."""
        self._address.is_held = False
        self.lease.release()

    def _check_place(self) -> None:
        """Raise `StudyLockedError` where another search has taken this one's place; nothing where this holds none.

        Raises:
            StorageError: The folder of the study is gone.
        """
        self._address.check()
        self.lease.check()


class AddressPlace:
    """An object at an address in which a lease is kept; see `autopeft.study.lease.Place`."""

    refuses_late_writes = True
    settle_seconds = 3.0
    """Longer than a request that is tried again."""

    def __init__(self, address: Address) -> None:
        self.name = address.uri
        self._address = address

    def read(self) -> Mark | None:
        """Return the mark; of a damaged one, that of nobody: not every storage writes an object at once."""
        self._address.check()
        content = self._address.read(LOCK)
        return None if content is None else Mark.from_bytes(content) or _nobody(content)

    def claim(self, mark: Mark, *, over: Mark | None) -> bool:
        """Write a mark where there is none, or in the place of another; see `Place`."""
        if over is None:
            with suppress(FileExistsError):
                self._address.create(LOCK, mark.to_bytes())
                return True
            now = self.read()  # it may be this one's, where an answer was lost
            return now is not None and now.token == mark.token
        if self.read() != over:
            return False
        self._address.put(LOCK, mark.to_bytes())
        return True

    def beat(self, mark: Mark) -> None:
        """Write the mark again."""
        self._address.put(LOCK, mark.to_bytes())

    def give_back(self, *, is_ours: bool) -> None:
        """Remove the object where the mark is still this one's."""
        if is_ours:
            self._address.remove(LOCK)

    def silent_seconds(self) -> float | None:
        """Return None: nobody knows."""
        return None

    def is_locked(self) -> bool:
        """Return False: no system watches over an object."""
        return False


def _nobody(content: bytes) -> Mark:
    process = ProcessMark(host="another host", pid=0, machine="unknown")
    return Mark(process=process, token=hashlib.sha256(content).hexdigest(), since=0.0)


def _part(offset: int) -> str:
    """Return the name of the part of a journal that begins at an offset."""
    return f"{_JOURNAL}{offset:0{_N_DIGITS}}"


def is_journal_part(name: str) -> bool:
    """Return whether a file at the address is a part of the journal."""
    return name.startswith(_JOURNAL) and name.removeprefix(_JOURNAL).isdigit()
