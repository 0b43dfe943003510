"""A lease: which process may write a study now. One set of rules, wherever the lease is kept.

The holder writes its mark into the place, and beats there every `BEAT_SECONDS`. The lease passes to another process
when

- the holder gives it back,
- the holder has died, which is seen on its own machine by the process alone, or
- the holder said nothing for `STALE_SECONDS`, by the clock of the place, or by watching it where it has none.

A holder that cannot beat, because its machine slept or the place was away, looks before it writes again whether another
process has taken the lease meanwhile.
"""

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from autopeft.errors import StorageError, StudyLockedError
from autopeft.study.process import ProcessMark

BEAT_SECONDS = 10.0
"""How often a holder says that it lives."""
STALE_SECONDS = 60.0
"""How long a holder may say nothing before another process takes the lease."""
TRUST_SECONDS = 20.0
"""How long after its last beat a holder takes it for granted that no other process has taken the lease."""
PATIENCE_SECONDS = 0.5
"""How long a lease is waited for whose place has a clock: somebody may just be asking whether it is held."""
_WAY_OUT = "wait for it, or give this one another study_name"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a holder writes.

    Attributes:
        process: Which process it is.
        token: Another one for each time that a lease is taken.
        since: When it was taken, in seconds since 1970 by the holder's clock.
        beats: How often the holder has said that it lives.
    """

    process: ProcessMark
    token: str
    since: float
    beats: int = 0

    @classmethod
    def new(cls) -> "Mark":
        """Return a mark of this process."""
        return cls(process=ProcessMark.here(), token=secrets.token_hex(8), since=time.time())

    @classmethod
    def from_bytes(cls, content: bytes) -> "Mark | None":
        """Read what `to_bytes` wrote; None where it is no mark: somebody is at it, or it is damaged."""
        try:
            values: Mapping[str, Any] = json.loads(content)
            process = ProcessMark.from_dict(values)
            return cls(
                process=process,
                token=str(values.get("token", "")),
                since=float(values["since"]),
                beats=int(values.get("beats", 0)),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def to_bytes(self) -> bytes:
        """Return the mark as JSON."""
        values = asdict(self)
        return json.dumps({**values.pop("process"), **values}).encode()

    def is_gone(self, silent_seconds: float | None, *, may_wake: bool) -> bool:
        """Return whether the holder has died, or is taken for dead.

        Args:
            silent_seconds: For how long it has said nothing; None where nobody knows.
            may_wake: Whether a silent process of this machine that is there keeps the lease: it may wake, and write.
        """
        is_dead = self.process.is_gone()
        if is_dead or (is_dead is False and may_wake):
            return is_dead
        return silent_seconds is not None and silent_seconds > STALE_SECONDS

    def __str__(self) -> str:
        return f"{self.process}, since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}"


class Place(Protocol):
    """Where a lease is kept: a file of a folder, an object at an address.

    Attributes:
        name: For messages.
        refuses_late_writes: Whether a holder that wakes looks for another mark before it writes.
        settle_seconds: After taking a lease from another, until it is clear that nobody else did so at the same time.
    """

    name: str
    refuses_late_writes: bool
    settle_seconds: float

    def read(self) -> Mark | None:
        """Return the mark that is there; None where there is none, or it is damaged."""

    def claim(self, mark: Mark, *, over: Mark | None) -> bool:
        """Write a mark where there is none, or in the place of another; return False where somebody was faster."""

    def beat(self, mark: Mark) -> None:
        """Write the holder's mark again."""

    def give_back(self, *, is_ours: bool) -> None:
        """Take the holder's mark away, where it is still there, and let go of whatever else holds the place."""

    def silent_seconds(self) -> float | None:
        """Return for how long the holder has said nothing, by the place's clock; None where it has none."""

    def is_locked(self) -> bool:
        """Return whether the system itself knows that a living process holds the lease."""


class Heartbeat:
    """Does something every `BEAT_SECONDS` in a thread of its own, until it is stopped.

    Args:
        beat: Returns whether to go on.
        name: Of the thread.
    """

    def __init__(self, beat: Callable[[], bool], *, name: str) -> None:
        self._beat = beat
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, and wait for that; can be called twice."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            if not self._beat():
                return


class Lease:
    """The lease of a study at one place.

    Attributes:
        was_left: Whether the holder before this one died with it, or fell silent.
    """

    def __init__(self, place: Place) -> None:
        self.was_left = False
        self._place = place
        self._mark: Mark | None = None
        self._beaten_at = 0.0
        self._n_beats = 1
        self._taken_by: Mark | None = None
        self._heartbeat: Heartbeat | None = None

    def acquire(self) -> None:
        """Take the lease, and beat until `release`; nothing where this object holds it.

        Raises:
            StudyLockedError: Another process holds it, and lives.
            StorageError: The place cannot be reached.
        """
        if self._mark is not None:
            return
        self.was_left, self._taken_by, mark, end = False, None, Mark.new(), time.monotonic() + PATIENCE_SECONDS
        while True:
            holder, started = self._place.read(), _now()
            if holder is None or self._is_free(holder):
                if self._place.claim(mark, over=holder) and self._is_ours(mark, settle=holder is not None):
                    self.was_left = holder is not None
                    break
            elif time.monotonic() > end:
                raise StudyLockedError(self._refusal(holder))
            time.sleep(0.05)
            if holder is None and time.monotonic() > end:
                raise StudyLockedError(self._refusal(self._place.read()))
        self._mark, self._beaten_at, self._n_beats = mark, started, 1
        self._heartbeat = Heartbeat(self._beat, name="autopeft-lease")

    def release(self) -> None:
        """Give the lease back; nothing where this object does not hold it."""
        mark, self._mark = self._mark, None
        if mark is None:
            return
        if self._heartbeat is not None:
            self._heartbeat.stop()
        now = None if self._taken_by is not None else self._place.read()
        self._place.give_back(is_ours=now is not None and now.token == mark.token)

    def is_held(self) -> bool:
        """Return whether a process that is not known to have died holds the lease, this one included."""
        if self._mark is not None or self._place.is_locked():
            return True
        holder = self._place.read()
        return holder is not None and not self._is_gone(holder)

    def check(self) -> None:
        """Raise `StudyLockedError` where another process has taken this one's lease; nothing where this holds none.

        Raises:
            StorageError: The place cannot be reached.
        """
        if self._mark is not None and self._taken_by is None and _now() - self._beaten_at > TRUST_SECONDS:
            # The machine slept, say, and the thread that would have noticed has not had its turn.
            self._taken_by = self._successor(self._mark)
        if self._taken_by is not None:
            raise StudyLockedError(
                f"one search at a time may write a study, but {self._taken_by.process} has taken this one's place at "
                f"{self._place.name}: this one had said nothing for {STALE_SECONDS:g} s; it ends here"
            )

    def _is_gone(self, holder: Mark) -> bool:
        return holder.is_gone(self._place.silent_seconds(), may_wake=not self._place.refuses_late_writes)

    def _is_free(self, holder: Mark) -> bool:
        """Return whether a holder is gone; where the place has no clock, it is watched."""
        if self._place.is_locked():
            return False
        if self._is_gone(holder):
            return True
        if self._place.silent_seconds() is not None:
            return False
        logging.getLogger("autopeft").warning(
            f"{holder.process} holds {self._place.name}; waiting up to {STALE_SECONDS:g} s to see whether it lives"
        )
        end = time.monotonic() + STALE_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, BEAT_SECONDS))
            now = self._place.read()
            if now is None or now.token != holder.token:
                return False  # given back, or taken by another: look again
            if now.beats != holder.beats:
                raise StudyLockedError(self._refusal(now))
        return True

    def _is_ours(self, mark: Mark, *, settle: bool) -> bool:
        """Return whether the mark is still there, after others who saw the same silence had time to write theirs."""
        if settle:
            time.sleep(self._place.settle_seconds)
        now = self._place.read()
        return now is not None and now.token == mark.token

    def _beat(self) -> bool:
        if (mark := self._mark) is None:
            return False
        with suppress(StorageError, OSError):  # what cannot be reached for a while is tried at the next beat
            started = _now()
            if (successor := self._successor(mark)) is not None:
                self._taken_by = successor
                return False
            if _now() - started <= TRUST_SECONDS:  # else the machine slept in between: look again
                self._place.beat(replace(mark, beats=self._n_beats))
                self._n_beats, self._beaten_at = self._n_beats + 1, started
        return True

    def _successor(self, mark: Mark) -> Mark | None:
        """Return the mark of another process that has taken the lease."""
        for pause in (0.5, None):
            now = self._place.read()
            if now is not None and now.token == mark.token:
                return None
            if now is not None or pause is None:
                return now
            time.sleep(pause)  # an empty file may be one that is being written
        return None

    def _refusal(self, holder: Mark | None) -> str:
        who = "another one" if holder is None else f"{holder}"
        silent = self._place.silent_seconds()
        takes = ""
        if holder is not None and silent is not None and holder.process.is_gone() is None:
            takes = f", and its lease can be taken over in {max(0.0, STALE_SECONDS - silent):.0f} s if it has died"
        return f"one search at a time may write a study, but {who} holds {self._place.name}{takes}; {_WAY_OUT}"


def _now() -> float:
    """Return seconds on a clock that counts while the machine sleeps, too, where the system has one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
