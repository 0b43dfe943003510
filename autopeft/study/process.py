"""Which process wrote something, and whether it is still there."""

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ProcessMark:
    """What tells a process from all others, also from a later one with its number.

    Attributes:
        machine: The boot of the machine, and what the process's number counts in (containers count on their own);
            the host's name where the system does not say.
        started: When the process began, in the system's own ticks; None where the system does not say.
    """

    host: str
    pid: int
    machine: str
    started: int | None = None

    @classmethod
    def here(cls) -> "ProcessMark":
        """Return the mark of this process."""
        return cls(host=socket.gethostname(), pid=os.getpid(), machine=_machine(), started=_started(os.getpid()))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ProcessMark":
        """Read what `to_dict` returned, and other keys beside it.

        Raises:
            ValueError: It is no mark.
        """
        try:
            mark = cls(**{name: values[name] for name in ("host", "pid", "machine", "started")})
        except (KeyError, TypeError) as error:
            raise ValueError(f"no mark of a process: {error}") from None
        if not isinstance(mark.pid, int) or mark.pid <= 0:
            raise ValueError(f"no process has the number {mark.pid!r}")
        return mark

    def to_dict(self) -> dict[str, Any]:
        """Return the mark as JSON-ready values."""
        return asdict(self)

    def is_gone(self) -> bool | None:
        """Return whether the process has surely ended; None where it cannot be seen from here, as on another host."""
        if self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it is there, and somebody else's
            pass
        # A process that has ended and that nobody has waited for writes nothing any more.
        return _started(self.pid) != self.started or _state(self.pid) in ("Z", "X")

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _fields(pid: int) -> list[str]:
    """Return what the system says of a process after its name, which may hold blanks; empty where it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> int | None:
    fields = _fields(pid)
    return int(fields[19]) if len(fields) > 19 else None


def _state(pid: int) -> str:
    return (_fields(pid) or [""])[0]
