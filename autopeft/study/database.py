"""A study's record in a PostgreSQL database that several drivers share, or in a SQLite file of one driver.

Every driver has a name, writes itself into the study when it begins, and says every few seconds that it is still
there, with the time of the database's clock: clocks of hosts may differ. A driver that has not said so for
`STALE_SECONDS` of `autopeft.study.lease` is gone, and another one may end its trials. What must happen in one piece,
such as "look what there is, and add a design that nobody has", happens in a turn: a lock in the database, which frees
it when its holder dies.

A server that restarts is waited for: each question is asked again for up to `PATIENCE_SECONDS`.
"""

import hashlib
import logging
import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage

from autopeft.errors import MissingDependencyError, StorageError
from autopeft.spec.storage_url import is_postgresql, masked, password_of, without_password
from autopeft.study.lease import Heartbeat, Mark
from autopeft.study.process import ProcessMark
from autopeft.study.turn import DecisionLostError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

T = TypeVar("T")

PATIENCE_SECONDS = 300.0
"""How long a database that does not answer is asked again."""
CONNECT_SECONDS = 10
"""How long one attempt to connect may take."""
LONGEST_TURN_SECONDS = 120
"""After which the server takes a turn away: its holder hangs, or its machine sleeps."""
LONGEST_WRITE_SECONDS = 30
"""After which the server drops what has been written of a trial, for the same reasons."""
_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 0.2, 5.0
_WAITED_TOO_LONG = "25P03"
"""What PostgreSQL says to a driver that has slept in the midst of writing; the connection is gone."""
_DRIVER = "driver."

_log = logging.getLogger("autopeft")


class Database:
    """The database that keeps a study.

    Attributes:
        url: Its address as it may be shown, without a password.
        storage: Optuna's storage in it.
        is_shared: Whether several drivers may write it at once.
        driver: Name of this driver; empty where the database is only read, or is of one driver alone.
    """

    def __init__(self, url: str, *, name: str, writes: bool) -> None:
        """Connect to it.

        Args:
            url: An address that `check_storage` has passed.
            name: Of the study.
            writes: Whether the study may be changed; the server refuses to otherwise.

        Raises:
            MissingDependencyError: The package that speaks to such a database is missing.
            StorageError: The database does not answer, or not to us.
            KeyError: It is to be read, and holds no study yet.
        """
        self.url = without_password(url)
        self.is_shared = is_postgresql(url)
        self._password = password_of(url)
        self._mark = ProcessMark.here()
        unique = f"{self._mark.host}-{self._mark.pid}-{secrets.token_hex(2)}"
        self.driver = unique if self.is_shared and writes else ""
        self._lock_key = _number(f"autopeft study {name}")
        self._patience_seconds = PATIENCE_SECONDS if writes else 0.0  # who only looks can look again
        self._turn: Connection | None = None
        self._heartbeat: Heartbeat | None = None
        self._study: optuna.Study | None = None
        self.storage = self._connect(writes=writes)
        if writes and not self.is_shared:
            _log.warning(f"{self.url} is for one search at a time; several share a study in PostgreSQL")

    def _connect(self, *, writes: bool) -> RDBStorage:
        from sqlalchemy import create_engine, inspect, text
        from sqlalchemy.exc import SQLAlchemyError

        arguments: dict[str, Any] = {"pool_pre_ping": True}  # a connection that a restart has cut is found before use
        address = self.url
        if self.is_shared:
            address = address.replace("postgresql://", "postgresql+psycopg://", 1)
            arguments["connect_args"] = _connect_arguments(self._password, writes=writes)
        try:
            engine = create_engine(address, **arguments)
            try:
                with engine.begin() as connection:
                    if not writes and not inspect(connection).has_table("studies"):
                        raise KeyError(f"{self.url} holds no study yet")
                    if self.is_shared and writes:  # two drivers that begin at once would make the tables twice
                        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _number("autopeft")})
                    return RDBStorage(address, arguments, skip_table_creation=not writes)
            finally:
                engine.dispose()
        except ImportError as error:
            raise MissingDependencyError(
                f"a storage at {self.url} needs the package psycopg, but: {error}; pip install 'autopeft[postgresql]'"
            ) from None
        except (SQLAlchemyError, StorageInternalError) as error:
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> StorageError:
        """Return the error to raise for one of SQLAlchemy's: its first line, and what can be done."""
        cause = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
        said = masked(" ".join(str(cause).split()), [self._password])
        ways_out = {
            "password": "give the password in the environment variable PGPASSWORD or in ~/.pgpass",
            "does not exist": "create it first, as with: createdb NAME",
            "does not allow": "see pg_hba.conf on the server",
            "read-only": "a study is written to the primary server",
        }
        way_out = next((way for sign, way in ways_out.items() if sign in said), "is the server there, and reachable?")
        return StorageError(f"the database of a study must answer, but {self.url} says: {said[:300]}; {way_out}")

    # What must happen in one piece --------------------------------------------------------------------------------

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep other drivers from deciding anything until the block ends; inside another turn, that one goes on.

        A server that restarts ends the turn before its time: `in_one_piece` then refuses what is decided in it.
        """
        if not self.driver or self._turn is not None:
            yield
            return
        self._turn = connection = self.ask(self._take_turn)
        try:
            yield
        finally:
            self._turn = None
            with suppress(Exception):  # where the server has gone, or has taken the turn away, there is none to end
                connection.rollback()
            with suppress(Exception):
                connection.close()

    def _take_turn(self) -> "Connection":
        from sqlalchemy import text

        connection = self.storage.engine.connect()
        try:
            timeout = f"SET LOCAL idle_in_transaction_session_timeout = '{LONGEST_TURN_SECONDS}s'"
            connection.execute(text(timeout))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": self._lock_key})
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def in_one_piece(self, trial_id: int | None = None, *, is_decision: bool = False) -> Iterator[None]:
        """Write all that Optuna writes in the block, or nothing.

        Optuna looks whether a trial has ended, writes one attribute, and commits: a driver that is stopped in
        between would change what another has ended meanwhile. And a new trial it writes again where the server
        has restarted, whoever has had a turn since then.

        Args:
            trial_id: What changes; another driver that would end this trial waits.
            is_decision: Whether only this driver's turn, where it has one, makes it right.

        Raises:
            DecisionLostError: The turn has been lost; nothing is written.
        """
        if not self.is_shared:
            yield
            return
        from sqlalchemy import text

        sessions = self.storage.scoped_session
        sessions.remove()
        with self.storage.engine.begin() as connection:
            timeout = f"SET LOCAL idle_in_transaction_session_timeout = '{LONGEST_WRITE_SECONDS}s'"
            connection.execute(text(timeout))
            if trial_id is not None:
                connection.execute(text("SELECT 1 FROM trials WHERE trial_id = :id FOR UPDATE"), {"id": trial_id})
            if is_decision:  # this connection is there already: a restart from here on ends it, too
                self._check_turn()
            sessions(bind=connection, join_transaction_mode="create_savepoint")  # what Optuna commits is a savepoint
            try:
                yield
            finally:
                with suppress(Exception):  # the server has dropped the connection
                    sessions().close()
                sessions.registry.clear()

    def _check_turn(self) -> None:
        from sqlalchemy import text
        from sqlalchemy.exc import SQLAlchemyError

        if self._turn is not None:
            try:
                self._turn.execute(text("SELECT 1"))
            except SQLAlchemyError:
                raise DecisionLostError("another driver may have decided since then") from None

    def ask(self, question: Callable[[], T]) -> T:
        """Return what a function of the database returns; where the database is away, wait for it and ask again.

        Raises:
            StorageError: It was away for `PATIENCE_SECONDS`.
        """
        delay, since = _FIRST_DELAY_SECONDS, 0.0
        while True:
            try:
                answer = question()
            except Exception as error:
                if not is_outage(error):
                    raise
                if not self._patience_seconds:
                    raise self._unusable(error) from None
                if not since:
                    since = time.monotonic()
                    _log.warning(
                        f"{self._unusable(error)} It is asked again for {self._patience_seconds / 60:.0f} min; "
                        "what trains goes on meanwhile."
                    )
                if time.monotonic() - since > self._patience_seconds:
                    raise self._unusable(error) from None
                time.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
            else:
                if since:
                    _log.warning(f"{self.url} answers again after {time.monotonic() - since:.0f} s; nothing was lost.")
                return answer

    # Who is there -------------------------------------------------------------------------------------------------

    def join(self, study: optuna.Study) -> None:
        """Write this driver into a study, and say that it is there until `leave`."""
        self._study = study
        if not self.driver:
            return
        self.ask(self._beat)
        self._heartbeat = Heartbeat(self._keep_beating, name="autopeft-heartbeat")

    def leave(self) -> None:
        """Say that this driver has ended, and close its connections; can be called twice."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
            with suppress(Exception):  # without this, others notice within `lease.STALE_SECONDS`
                self._beat(ended=True)
        self.storage.remove_session()
        self.storage.engine.dispose()

    def _keep_beating(self) -> bool:
        with suppress(Exception):  # the driver itself waits for a server that is away, and says so
            self._beat()
        self.storage.remove_session()
        return True

    def _beat(self, *, ended: bool = False) -> None:
        assert self._study is not None
        values = {**self._mark.to_dict(), "seen_at": self._clock()[0], "ended": ended}
        self.storage.set_study_user_attr(self._study._study_id, _DRIVER + self.driver, values)

    def _clock(self) -> tuple[float, float]:
        """Return the database's time, and when its server started, in seconds since 1970."""
        from sqlalchemy import text

        with self.storage.engine.connect() as connection:
            now, started = connection.execute(
                text("SELECT extract(epoch FROM clock_timestamp()), extract(epoch FROM pg_postmaster_start_time())")
            ).one()
        return float(now), float(started)

    def check(self) -> None:
        """Ask the database for a sign of life. Raises an error that `is_outage` knows where there is none."""
        with self.storage.engine.connect():  # a connection that was open before is asked first
            pass

    def seen(self, drivers: Iterable[str]) -> dict[str, "Sign"]:
        """Return what there is to see of other drivers, by name."""
        assert self._study is not None
        study = self._study
        now, server_started = self.ask(self._clock)
        attributes = self.ask(lambda: study.user_attrs)
        return {driver: _sign(attributes.get(_DRIVER + driver), now, server_started) for driver in drivers}


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What there is to see of a driver.

    Attributes:
        seen_at: When it was last there, by the database's clock.
        is_gone: Whether it has ended, or is taken for dead.
        was_killed: Whether it is taken for dead, and has not said that it ends.
    """

    seen_at: float
    is_gone: bool
    was_killed: bool = False


def _sign(mark: Mapping[str, Any] | None, now: float, server_started: float) -> Sign:
    if mark is None:
        return Sign(seen_at=0.0, is_gone=True)
    seen_at = float(mark["seen_at"])
    # While the server was away nobody could say anything. What a driver writes that was taken for dead is refused.
    silent_seconds = now - max(seen_at, server_started)
    holder = Mark(process=ProcessMark.from_dict(mark), token="", since=0.0)
    is_dead = not mark["ended"] and holder.is_gone(silent_seconds, may_wake=False)
    return Sign(seen_at=seen_at, is_gone=bool(mark["ended"]) or is_dead, was_killed=is_dead)


def _connect_arguments(password: str | None, *, writes: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "application_name": "autopeft",
        # A server whose machine has gone is noticed within a minute, not after hours.
        "keepalives_idle": 20,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,
    }
    if password is not None:
        arguments["password"] = password
    if not writes:
        arguments["options"] = "-c default_transaction_read_only=on"
    return arguments


def _number(name: str) -> int:
    """Return a number for a name, as the server's locks are called."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)


def is_outage(error: BaseException | None) -> bool:
    """Return whether a database that does not answer is at the bottom of an error."""
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError

    while error is not None:
        if isinstance(error, OperationalError | InterfaceError | PendingRollbackError | StorageError):
            return True
        # What the server itself refuses has a code; what has none went wrong on the way to it.
        if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", "") in (None, _WAITED_TOO_LONG):
            return True
        error = error.__cause__
    return False
