"""A study's copy at an address such as `s3://bucket/runs/reviews`: what a machine that is lent takes with it.

A search works in a local folder; what it writes for good counts once it is at the address too, and the address is
what the next search begins from, wherever that runs. Object stores cannot append, so the journal lies there in parts:
`journal/<offset>` holds what was appended at that byte, and is never written over by another search.
"""

import json
import logging
import threading
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from autopeft.errors import StorageError, StudyLockedError
from autopeft.study import address
from autopeft.study.address import Address
from autopeft.study.process import ProcessMark

LOCK = "lock.json"
BEAT_SECONDS = 10.0
"""How often a search says at the address that it lives."""
SILENCE_SECONDS = 45.0
"""How long a search that says nothing is waited for, before another takes its place. No clock is compared."""
TRUST_SECONDS = 20.0
"""How long after its last word a search takes it for granted that no other has taken its place."""
SETTLE_SECONDS = 3.0
"""After taking the place of another, until it is clear that nobody else did so at the same time: longer than a request
that is tried again."""
_JOURNAL = "journal/"
_N_DIGITS = 15


class Mirror:
    """Files of one study at an address.

    Args:
        uri: Of the study, as fsspec reads it.

    Attributes:
        was_left: Whether this took the place of a search that died, or fell silent.

    Raises:
        MissingDependencyError: The package that the address needs is not installed.
        StudyError: No storage is known by its name.
    """

    def __init__(self, uri: str) -> None:
        self._address = Address(uri)
        self.uri = self._address.uri
        self.was_left = False
        self._token = uuid.uuid4().hex
        self._beats: threading.Thread | None = None
        self._ended = threading.Event()
        self._taken_by = ""
        self._said_at = 0.0
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

    # The lock -------------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Hold the study for one search, and say so from time to time until `release`.

        A search that was killed is told by its process, on this machine, or by its silence.

        Raises:
            StudyLockedError: Another search holds it, and lives.
        """
        self._taken_by, self.was_left = "", False
        said_at = _now()
        while not self._create_lock():
            holder = self._holder()
            if holder is None:
                continue  # it has just been given back
            if not _has_died(holder):
                self._wait_for_silence(holder)
            said_at = _now()
            if self._holder() == holder:
                self._address.put(LOCK, self._claim(0))
                self.was_left = True
                time.sleep(SETTLE_SECONDS)  # who has seen the same silence writes itself into the lock by then
                break
        mine = self._holder()
        if mine is None or mine.get("token") != self._token:
            raise StudyLockedError(self._refusal(mine or {}))
        self._said_at = said_at
        self._ended.clear()
        self._address.is_held = True
        self._beats = threading.Thread(target=self._beat, name="autopeft-beats", daemon=True)
        self._beats.start()

    def release(self) -> None:
        """Give the study back."""
        if self._beats is None:
            return
        self._ended.set()
        self._beats.join()
        self._beats = None
        self._address.is_held = False
        holder = self._holder()
        if holder is not None and holder.get("token") == self._token:
            self.remove(LOCK)

    def is_held(self) -> bool:
        """Return whether a search that is not known to have died holds the study."""
        holder = self._holder()
        return holder is not None and not _has_died(holder)

    def _check_place(self) -> None:
        """Raise `StudyLockedError` where another search has taken this one's place; nothing where this holds none.

        Raises:
            StorageError: The folder of the study is gone.
        """
        self._address.check()
        if self._beats is not None and not self._taken_by and _now() - self._said_at > TRUST_SECONDS:
            # The machine slept, say, and the thread that would have noticed has not had its turn.
            self._taken_by = self._successor()
        if self._taken_by:
            raise StudyLockedError(
                f"one search at a time may write a study, but {self._taken_by} has taken this one's place at "
                f"{self.uri}: this one had said nothing for {SILENCE_SECONDS:g} s; it ends here"
            )

    def _successor(self) -> str:
        """Return who has taken this one's place, in words; empty where nobody has."""
        self._address.check()
        holder = self._holder()
        if holder == {}:  # not every storage writes a file at once, and the other thread may be at it
            time.sleep(address.PAUSES_SECONDS[0])
            holder = self._holder()
        is_ours = holder is not None and holder.get("token") == self._token
        return "" if is_ours else _who(holder or {})

    def _create_lock(self) -> bool:
        try:
            self._address.create(LOCK, self._claim(0))
        except FileExistsError:  # it may be this one's, where an answer was lost
            return bool((self._holder() or {}).get("token") == self._token)
        return True

    def _wait_for_silence(self, holder: dict[str, Any]) -> None:
        logging.getLogger("autopeft").warning(
            f"{_who(holder)} holds {self.uri}; waiting up to {SILENCE_SECONDS:g} s to see whether it lives"
        )
        end = time.monotonic() + SILENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, BEAT_SECONDS))
            now = self._holder()
            if now is None or now.get("token") != holder.get("token"):
                return
            if now != holder:
                raise StudyLockedError(self._refusal(now))

    def _beat(self) -> None:
        n_beats = 0
        while not self._ended.wait(BEAT_SECONDS):
            n_beats += 1
            with suppress(StorageError):  # what cannot be reached for a while is tried at the next beat
                said_at = _now()
                if taken_by := self._successor():
                    self._taken_by = taken_by
                    return
                if _now() - said_at > TRUST_SECONDS:
                    continue  # the machine slept in between: look again
                self._address.put(LOCK, self._claim(n_beats))
                self._said_at = said_at

    def _claim(self, n_beats: int) -> bytes:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return json.dumps(
            {**ProcessMark.here().to_dict(), "time": now, "token": self._token, "beats": n_beats}
        ).encode()

    def _holder(self) -> dict[str, Any] | None:
        content = self.read(LOCK)
        if content is None:
            return None
        try:
            holder = json.loads(content)
        except ValueError:
            holder = None
        return holder if isinstance(holder, dict) else {}

    def _refusal(self, holder: dict[str, Any]) -> str:
        return (
            f"one search at a time may write a study, but {_who(holder)} holds {self.uri}; wait for it, or give this "
            "one another study_name"
        )


def _now() -> float:
    """Return seconds on a clock that counts while the machine sleeps, too, where the system has one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def _part(offset: int) -> str:
    """Return the name of the part of a journal that begins at an offset."""
    return f"{_JOURNAL}{offset:0{_N_DIGITS}}"


def is_journal_part(name: str) -> bool:
    """Return whether a file at the address is a part of the journal."""
    return name.startswith(_JOURNAL) and name.removeprefix(_JOURNAL).isdigit()


def _who(holder: dict[str, Any]) -> str:
    if "pid" not in holder:
        return "another search"
    return f"process {holder['pid']} on {holder.get('host')} (as of {holder.get('time')})"


def _has_died(holder: dict[str, Any]) -> bool:
    """Return whether the process that holds a lock is known to have ended: it was one of this machine."""
    try:
        return ProcessMark.from_dict(holder).is_gone() is True
    except ValueError:
        return False
