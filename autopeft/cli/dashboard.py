"""`autopeft dashboard`: a study in the browser, live and read-only; alone or beside a search."""

import errno
import os
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import click

from autopeft.cli.base import explain_errors

PORT = click.IntRange(1, 65535)
_NICENESS = 5
"""Of a dashboard beside a search: it gets a quarter of a core that both want."""


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--port", type=PORT, help="Where to serve; 8080, or the next free one, by default.")
@click.option(
    "--host",
    help="Address to serve on, 0.0.0.0 for all that this machine has. By default this machine alone reaches the page; "
    "there is no password.",
)
@click.option("--beside", "descriptor", type=int, hidden=True)  # started by `autopeft search --dashboard`
@explain_errors
def dashboard(folder: str, port: int | None, host: str | None, descriptor: int | None) -> None:
    """Show the study in FOLDER (runs/<name>) in Optuna Dashboard, also while it runs, here or elsewhere.

    The page can be looked at and not changed, and this machine alone reaches it. From another one, open a tunnel:
    ssh -L 8080:localhost:8080 THIS-MACHINE. Or serve it on a network that you trust with --host.
    """
    if descriptor is not None:
        _serve_beside(Path(folder), socket.socket(fileno=descriptor))
        return
    click.echo(f"loading Optuna Dashboard and the study in {folder}", err=True)
    from autopeft.results.dashboard import StudyApp
    from autopeft.results.dashboard_server import LOOPBACK, Server, url

    app = StudyApp(folder)
    app.check()
    with closing(app), _listen(port, "--port", host) as listening, suppress(KeyboardInterrupt):
        warnings.simplefilter("ignore")  # the page's importances warn at each request that the trials are few
        if not listening.getsockname()[0].startswith("127."):
            click.echo(
                f"warning: whoever reaches {host} on the network can read the study and its adapters, for there is no "
                "password; without --host, this machine alone can",
                err=True,
            )
        click.echo(f"{url(listening)}  (ready; Ctrl-C ends it)")
        Server(listening, app, host or LOOPBACK).serve_forever()


@contextmanager
def beside(folder: Path, port: int | None, *, password: str | None = None) -> Iterator[str]:
    """Serve the dashboard of a study in a process of its own for as long as the block runs; yield its address.

    The process ends when this one does, however that ends: the system then closes the pipe that it watches.

    Args:
        folder: The study's.
        port: Where to serve; 8080, or the next free one, by default.
        password: Of the database that keeps the study, where its address has one.
    """
    from autopeft.results.dashboard_server import url

    folder.mkdir(parents=True, exist_ok=True)
    with _listen(port, "--dashboard-port") as listening, (folder / "dashboard.log").open("ab") as log:
        address = url(listening)
        process = subprocess.Popen(
            [sys.executable, "-m", "autopeft", "dashboard", str(folder), "--beside", str(listening.fileno())],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[listening.fileno()],
            env=None if password is None else {**os.environ, "PGPASSWORD": password},
            start_new_session=True,  # Ctrl-C is for the search, which ends the dashboard when it is done
        )
    assert process.stdin is not None
    try:
        yield address
    finally:
        process.stdin.close()
        process.wait()


def _listen(port: int | None, option: str, host: str | None = None) -> socket.socket:
    from autopeft.results.dashboard_server import LOOPBACK, listen

    try:
        return listen(port, host or LOOPBACK)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise click.BadParameter(
                f"{host!r}: {error.strerror}; give an address of this machine, or 0.0.0.0 for all that it has",
                param_hint="--host",
            ) from None
        raise click.BadParameter(
            f"{port or ''}: {error.strerror}; give another one, or none for the next that is free",
            param_hint=option,
        ) from None


def _serve_beside(folder: Path, listening: socket.socket) -> None:
    """Serve a study, also one that is still to be written, until the process that asked for it ends."""

    def end_with_parent() -> None:
        sys.stdin.buffer.read()  # returns when the other end of the pipe is gone
        os._exit(0)  # nothing is held that would have to be let go of in order

    threading.Thread(target=end_with_parent, daemon=True).start()
    from autopeft.results.dashboard import StudyApp
    from autopeft.results.dashboard_server import Server

    _give_way()  # not before: somebody may wait for the first page, and the search has not begun
    Server(listening, StudyApp(folder)).serve_forever()


def _give_way() -> None:
    """Let the search come first, also where Linux shares the time among sessions before it does among processes."""
    os.nice(_NICENESS)
    with suppress(OSError):  # another system, or a kernel that does not
        Path("/proc/self/autogroup").write_text(str(_NICENESS))


COMMANDS = (dashboard,)
