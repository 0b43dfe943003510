"""The Ray that workers run on: one that this process uses already, a cluster, or a local one started on demand."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from autopeft.errors import AutopeftError, ExecutorError, MissingDependencyError, ModelError, StudyError
from autopeft.executors.actor import go_to
from autopeft.executors.folder_transfer import Folder, FolderTransfer, Lacking, settle
from autopeft.executors.versions import check_versions, versions
from autopeft.executors.worker_resources import WorkerResources, share_out
from autopeft.spec.study import RayOptions

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError
except ImportError as error:
    raise MissingDependencyError(
        f"executor ray needs the package ray ({error}); run pip install ray, or take executor=local"
    ) from None

T = TypeVar("T")

log = logging.getLogger("autopeft")

OBJECT_STORE_BYTES = 256 * 2**20
"""Of a local Ray: holds the data and what is on its way; Ray takes a disk for what is beyond it."""
START_SECONDS = 300.0
"""Within which a worker must have started; a first import from a slow disk takes a minute."""
GROW_SECONDS = 1800.0
"""The same for a cluster that may grow: a machine with a GPU takes minutes to be found, started and filled."""
LOST_SECONDS = 40.0
"""How long the head node may be out of reach. After 60 seconds of that Ray itself ends this process, on the spot."""
_CHECK_SECONDS, _KNOCK_SECONDS = 5.0, 2.0
FORWARDED = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM")
"""Variables of this process that workers on other machines need too."""


class RayCluster:
    """A Ray to run workers on, connected to when it is first needed.

    A Ray that this process uses already is used as it is. Otherwise the one at `options.address` is joined, or a local
    one started. What was started or joined here is left by `close`.

    Args:
        options: Address, and what each worker gets.
        n_workers: Workers that will run at the same time.
        device: What the study trains on.
    """

    def __init__(self, options: RayOptions, *, n_workers: int, device: str = "auto") -> None:
        """Remember what is wanted.

        Raises:
            StudyError: A GPU is named by its number, and Ray gives each worker its own.
        """
        if ":" in device:
            raise StudyError(
                f"training.device must be auto, cpu or cuda on Ray, which numbers GPUs, but got {device!r}"
            )
        self.n_workers = n_workers
        self._options = options
        self._device = device
        self._share: WorkerResources | None = None
        self._n_room = 0
        self._transfer = FolderTransfer()
        self._connected_here = False
        self._head = ""
        self._next_check = 0.0
        self._away_since: float | None = None

    @property
    def share(self) -> WorkerResources:
        """Return what each worker gets.

        Raises:
            ExecutorError: Ray cannot be started or reached, or its workers cannot run autopeft.
            StudyError: It has no room for the workers.
        """
        if self._share is None:
            self._share = self._connect()
        return self._share

    @property
    def n_ready(self) -> int:
        """Return how many of the workers there is room for now; others wait for the cluster to grow."""
        self._share = self.share
        return min(self.n_workers, self._n_room)

    @property
    def start_seconds(self) -> float:
        """Return within what time at least one worker must have started."""
        return GROW_SECONDS if self._options.address is not None else START_SECONDS

    @property
    def n_threads(self) -> int:
        """Return the threads of each worker; raises what `share` raises."""
        return self.share.n_cpus

    @property
    def placement(self) -> dict[str, Any]:
        """Return the options of a task or an actor that is one worker."""
        return _placement(self.share)

    def take_along(self, name: str, files: Sequence[Path]) -> None:
        """Have a folder of this machine be where workers look for it by its name: nodes that lack it are sent it."""
        self._transfer.add(name, files)

    @property
    def folders(self) -> tuple[Folder, ...]:
        """Return what workers are told of the folders that were taken along."""
        return self._transfer.folders

    def send(self, lacking: Lacking) -> None:
        """Put folders that a node lacks into the object store: what is told of them from now on has their content.

        Raises:
            ExecutorError: The object store has no room for them.
        """
        log.warning("sending %s to nodes that lack it", words := self._transfer.describe(lacking.names))
        try:
            self._transfer.unpack(lacking.names, ray.put)
        except RayError as error:
            raise ExecutorError(
                f"{words} must go through Ray's object store to nodes that lack it, but {last_line(str(error))}; put "
                "it at the same path on every node, or give a hub id"
            ) from error

    def stop_sending(self) -> None:
        """Take out of the object store what was sent."""
        self._transfer.pack()

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Say of what Ray raises in the block, and nobody there has an answer to, that Ray itself is out of reach.

        Raises:
            ExecutorError: That is so.
        """
        try:
            yield
        except (RayError, ConnectionError) as error:
            raise self._lost(reason_of(error)) from error

    def check_head(self) -> None:
        """Look now and then whether the head node answers.

        Raises:
            ExecutorError: It has not for `LOST_SECONDS`.
        """
        now = time.monotonic()
        if not self._head or now < self._next_check:
            return
        self._next_check = now + _CHECK_SECONDS
        try:
            _knock(self._head, timeout=_KNOCK_SECONDS)
            self._away_since = None
        except OSError as error:
            self._away_since = now if self._away_since is None else self._away_since
            seconds = now - self._away_since
            if seconds > LOST_SECONDS:
                why = f"nothing has answered at {self._head} for {seconds:.0f} s ({error})"
                raise self._lost(why) from error

    @property
    def is_away(self) -> bool:
        """Return whether the head node did not answer when it was last looked at: what asks it for anything blocks."""
        return self._away_since is not None

    def _lost(self, why: str) -> ExecutorError:
        where = "the local Ray" if self._options.address is None else f"the Ray at {self._options.address!r}"
        return ExecutorError(f"{where} must stay reachable, but {why.rstrip('.')}; the same command resumes the study")

    def call(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call a function once where workers run, and return its answer; autopeft's errors come back as they are."""
        task = ray.remote(max_retries=0)(_call_in).options(**self.placement)
        try:
            while isinstance(
                answer := ray.get(task.remote(os.getcwd(), self.folders, function, args, kwargs)), Lacking
            ):
                self.send(answer)
            return answer  # type: ignore[no-any-return]
        except RayTaskError as error:
            if isinstance(error.cause, ModelError) and self._options.address is not None:
                raise ModelError(f"{error.cause}; that was on a node of the cluster") from None
            if isinstance(error.cause, AutopeftError):
                raise error.cause from None
            raise ExecutorError(f"{function.__name__} failed on a worker of Ray: {last_line(str(error))}") from error
        except RayError as error:
            raise ExecutorError(f"a worker of Ray was lost in {function.__name__}: {last_line(str(error))}") from error

    def close(self) -> None:
        """Leave Ray, and stop it where it was started here. Can be called twice."""
        if self._connected_here:
            self._connected_here = False
            with _own_signals():
                ray.shutdown()
        self._share = None

    def never_started(self) -> str:
        """Say that no worker started, and what Ray has left."""
        free = {name: round(n, 2) for name, n in ray.available_resources().items() if name in ("CPU", "GPU")}
        return (
            f"a worker must start within {self.start_seconds:g} s, but none did; Ray has {free or 'nothing'} free now: "
            "wait for what else runs there to end, or ask for less under executor"
        )

    def _connect(self) -> WorkerResources:
        if not ray.is_initialized():
            _start(self._options.address)
            self._connected_here = True
        try:
            self._head = _head_address()
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            can_grow = self._options.address is not None
            share = share_out(nodes, self.n_workers, self._options, self._device, can_grow=can_grow)
            self._n_room = share.count(nodes)
            if not self._n_room:
                log.warning("no node has room for a worker with %s: waiting for one to join", share.describe())
            self._probe(share)
        except BaseException:
            self.close()
            raise
        return share

    def _probe(self, share: WorkerResources) -> None:
        """Raise `ExecutorError` unless a worker starts, with the versions of this process."""
        try:
            task = ray.remote(max_retries=0)(versions).options(**_placement(share))
            there = ray.get(task.remote(), timeout=self.start_seconds)
        except GetTimeoutError:
            raise ExecutorError(self.never_started()) from None
        except RayError as error:
            raise ExecutorError(
                f"workers on Ray must be able to import autopeft and what it needs, but: {reason_of(error)}; "
                "install autopeft on every node"
            ) from error
        check_versions(versions(), there)


def _call_in(
    folder: str,
    folders: Sequence[Folder],
    function: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> T | Lacking:
    go_to(folder)
    return settle(folders, ray.get) or function(*args, **kwargs)


def _start(address: str | None) -> None:
    """Join the Ray at an address, or start a local one, without a word in the user's terminal."""
    if address is not None:
        _check_reachable(address)
    quiet = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    local = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _own_signals():
            ray.init(**quiet, **(local if address is None else {"address": address}))
    except (Exception, SystemExit) as error:  # Ray ends the process where a cluster does not answer
        where = "a local Ray cannot be started" if address is None else f"the Ray at {address!r} cannot be joined"
        raise ExecutorError(f"{where}: {_why_not(error)}, or take executor=local") from error


def _why_not(error: BaseException) -> str:
    """Return why a Ray was not joined, and what to do, in a line."""
    text = str(error).strip()
    if text.startswith("Version mismatch"):  # Ray's own check: the cluster's versions, then those of this process
        return f"{' '.join(text.split())}; install the same on both"
    reason = last_line(text).rstrip(".") or type(error).__name__
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        # At a given address Ray sends no token unless it is told to, and what it then says names no reason.
        reason += (
            " (where the cluster asks for a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token)"
        )
    return f"{reason}; see executor.address"


def _check_reachable(address: str) -> None:
    """Raise `ExecutorError` where nothing answers: Ray itself tries for minutes, and then ends the process."""
    _, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        return  # `auto`, or something that Ray explains itself
    try:
        _knock(address.removeprefix("ray://"), timeout=10)
    except OSError as error:
        raise ExecutorError(
            f"executor.address must be that of a running Ray, but nothing answers at {address!r} ({error}); "
            "start one with `ray start --head`, or leave the address out for a local Ray"
        ) from None


def _knock(address: str, *, timeout: float) -> None:
    """Connect to host:port, and leave. Raises OSError where nothing answers."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=timeout).close()


def _head_address() -> str:
    """Return host:port of what runs on the head node of the Ray in use; empty where a client speaks with it for us."""
    if ray.util.client.ray.is_connected():  # an address of `ray://`: the client raises where it is lost
        return ""
    return str(ray.get_runtime_context().gcs_address)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handlers: Ray replaces the one of SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _placement(share: WorkerResources) -> dict[str, Any]:
    # Set for the process: libraries read it when they are loaded, and their threads must not fight over cores.
    variables = {"OMP_NUM_THREADS": str(share.n_cpus), "TOKENIZERS_PARALLELISM": "false"}
    variables |= {name: os.environ[name] for name in FORWARDED if name in os.environ}
    if not share.n_gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return {"num_cpus": share.n_cpus, "num_gpus": share.n_gpus, "runtime_env": {"env_vars": variables}}


def reason_of(error: BaseException) -> str:
    """Return why a worker did not start, in a line."""
    cause = getattr(error, "cause", None)
    return last_line(str(cause if isinstance(cause, ExecutorError) else error) or type(error).__name__)


def last_line(text: str) -> str:
    """Return what an error ends with: the error on the worker, below its traceback."""
    return (text.strip().splitlines() or [""])[-1].strip()
