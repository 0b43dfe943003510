"""What runs in the process of a remote worker."""

import os
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autopeft.errors import ExecutorError
from autopeft.executors.base import MeasuredWorker, SegmentWorker, process_name
from autopeft.executors.folder_transfer import Folder, Lacking, settle
from autopeft.executors.versions import versions
from autopeft.spec.trial import Segment, SegmentResult, SegmentStatus

Recipe = tuple[Callable[[Any], SegmentWorker], Any, str]
"""An importable function that makes a worker, the value that it makes it from, and the driver's working folder."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker has come up.

    Attributes:
        name: Of the worker, as in results.
        device: Its GPU or, without one, its node; workers with the same name share the memory.
        memory_bytes: Of that device; None where the worker can't tell.
        versions: Of what must be the same everywhere.
    """

    pid: int
    name: str
    node: str
    device: str
    memory_bytes: int | None
    versions: Mapping[str, str]

    def describe_node(self) -> str:
        """Return the node in words: the name of its host, and how Ray calls it."""
        return f"the node {self.name.partition('@')[2]} ({self.node[:8]})"


@dataclass(frozen=True, kw_only=True)
class Report:
    """A segment's result, and how it leaves the worker.

    Attributes:
        held: Bytes of the base models that the worker keeps loaded, by quantization.
        broken: Whether the worker raised, which it must not: it is of no more use.
    """

    result: SegmentResult
    held: Mapping[str, int] = field(default_factory=dict)
    broken: bool = False


class SegmentActor:
    """Holds a worker: runs its segments in one thread, and hears of a stop in another.

    Args:
        recipe: Makes the worker, here and now.
    """

    def __init__(self, recipe: Recipe) -> None:
        # A terminal sends Ctrl-C to every process in it; the driver alone answers it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._make_worker, self._setup, folder = recipe
        go_to(folder)
        self._stop_until = -1
        self._worker: SegmentWorker | None = None

    def place(self, folders: Sequence[Folder] = ()) -> Place | Lacking:
        """Make the worker and say where it is, or what this node lacks.

        Args:
            folders: Of the driver, that the worker reads.

        Raises:
            ExecutorError: The worker could not be made.
        """
        import ray

        try:
            if lacking := settle(folders, ray.get):
                return lacking
            self._worker = self._make_worker(self._setup)
        except Exception as error:  # whatever it is, it may not survive pickling: its text does
            raise ExecutorError(_text(error)) from None
        node = ray.get_runtime_context().get_node_id()
        gpus = ray.get_gpu_ids()
        measured = self._worker if isinstance(self._worker, MeasuredWorker) else None
        return Place(
            pid=os.getpid(),
            name=process_name(),
            node=node,
            device=f"{node}/gpu{gpus[0]}" if gpus else node,
            memory_bytes=measured.device_bytes() if measured else None,
            versions=versions(),
        )

    def run(self, segment: Segment, number: int) -> Report:
        """Run a segment, the `number`-th that the driver sent out; whatever it raises comes back as text."""
        assert self._worker is not None
        try:
            result = self._worker.run(segment, lambda: self._stop_until >= number)
            held = self._worker.held_bytes() if isinstance(self._worker, MeasuredWorker) else {}
            return Report(result=replace(result, worker=process_name()), held=dict(held))
        except Exception as error:
            status = SegmentStatus.OUT_OF_MEMORY if isinstance(error, MemoryError) else SegmentStatus.FAILED
            failure = SegmentResult(trial=segment.trial, status=status, examples=segment.start, error=_text(error))
            return Report(result=failure, broken=True)

    def stop(self, number: int) -> None:
        """Ask the `number`-th segment and those before it to end; later ones are not meant."""
        self._stop_until = max(self._stop_until, number)


def go_to(folder: str) -> None:
    """Work where the driver does, if there is such a folder here: paths that are relative to it then mean the same."""
    if os.path.isdir(folder):
        os.chdir(folder)


def _text(error: Exception) -> str:
    return "".join(traceback.format_exception(error)).strip()
