"""A web server, for this machine alone unless told otherwise, and the guard that lets a page be read alone."""

import errno
import ipaddress
import json
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
OWN_NAMES = frozenset({"localhost", "127.0.0.1"})
"""What a browser on this machine, or at the other end of a tunnel to it, calls the server."""
READING = frozenset({"GET", "HEAD", "OPTIONS"})
DEFAULT_PORT = 8080
_N_PORTS_TRIED = 100
_HIDE_BUTTONS = b"""<style>
[aria-label="delete study"], [aria-label="rename study"], [aria-label="delete artifact"],
button:has(> .MuiButton-startIcon > [data-testid="AddBoxIcon"]) { display: none !important; }
</style>
"""
"""What Optuna Dashboard has for changing studies: the last selector is the button `Create` of its list of studies."""


def read_only(app: WSGIApplication, host: str = LOOPBACK) -> WSGIApplication:
    """Return an application that answers requests to read, made to this machine by its own name.

    Other methods are answered 403 before they reach `app`. So are other host names: a page of a foreign site
    whose name has been pointed at this machine (DNS rebinding) carries its own name in the header.

    Args:
        app: What is guarded.
        host: Where the server listens. Anywhere but on the loopback interface, requests to addresses in numbers and
            to the machine's names are answered too.
    """
    names = {name.lower() for name in _names(host)}

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        asked = environ.get("HTTP_HOST", "")
        name, _, port = asked.partition(":")
        is_own = name.lower() in names or (host != LOOPBACK and _is_address(name))
        if not is_own or not (port or "0").isdecimal():
            return _refuse(start_response, f"this page answers to {', '.join(sorted(names))} alone, not to {asked!r}")
        if environ["REQUEST_METHOD"] not in READING:
            return _refuse(start_response, "this page shows a study and cannot change it")

        def answer(status: str, headers: list[tuple[str, str]], *rest: Any) -> Callable[[bytes], object]:
            # Pages of other sites must not load what is here as their scripts or pictures, nor read adapters.
            kept = [(name, value) for name, value in headers if name.lower() != "access-control-allow-origin"]
            return start_response(status, [*kept, ("Cross-Origin-Resource-Policy", "same-origin")], *rest)

        return app(environ, answer)

    return guarded


def page_of_study(app: WSGIApplication, study_id: int) -> WSGIApplication:
    """Return Optuna Dashboard opened at one study, without the buttons that would create, rename or delete one.

    The guard refuses what they ask for; a page that offers them all the same would promise what it cannot do.

    Args:
        app: Optuna Dashboard.
        study_id: What it calls the study by.
    """

    def show(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "").rstrip("/")
        if path in ("", "/dashboard"):
            start_response("302 Found", [("Location", f"/dashboard/studies/{study_id}"), ("Content-Length", "0")])
            return [b""]
        if not path.startswith("/dashboard/"):
            return app(environ, start_response)
        return _with_style(app, environ, start_response)

    return show


def _with_style(app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the page of an application, `_HIDE_BUTTONS` put into its head."""
    begun: list[Any] = []

    def begin(status: str, headers: list[tuple[str, str]], *_: Any) -> Callable[[bytes], object]:
        begun[:] = [status, headers]
        return lambda _: None

    answered = app({**environ, "HTTP_RANGE": ""}, begin)
    body = b"".join(answered)
    if hasattr(answered, "close"):
        answered.close()
    status, headers = begun
    if status.startswith("200") and environ["REQUEST_METHOD"] == "GET":
        body = body.replace(b"</head>", _HIDE_BUTTONS + b"</head>", 1)
        headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        headers.append(("Content-Length", str(len(body))))
    start_response(status, headers)
    return [body]


def _names(host: str) -> frozenset[str]:
    return OWN_NAMES if host == LOOPBACK else OWN_NAMES | {host, socket.gethostname(), socket.getfqdn()}


def _is_address(name: str) -> bool:
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


def _refuse(start_response: StartResponse, reason: str) -> list[bytes]:
    body = json.dumps({"reason": reason}).encode()
    start_response("403 Forbidden", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def not_yet(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer that the search has not begun, and let the browser ask again; a WSGI application."""
    text = "The search has not begun yet: it reads the model and the data first. This page asks again by itself."
    return _unavailable(text, start_response)


def no_answer(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer that the study's database is away, and let the browser ask again; a WSGI application."""
    return _unavailable("The study's database does not answer. This page asks again by itself.", start_response)


def _unavailable(text: str, start_response: StartResponse) -> list[bytes]:
    body = text.encode()
    headers = [("Content-Type", "text/plain"), ("Refresh", "2"), ("Content-Length", str(len(body)))]
    start_response("503 Service Unavailable", headers)
    return [body]


def listen(port: int | None = None, host: str = LOOPBACK) -> socket.socket:
    """Return a socket that listens, on the loopback interface by default.

    Args:
        port: None means 8080, or the next free one.
        host: An address or a name of this machine; `0.0.0.0` for all that it has.

    Raises:
        OSError: The port cannot be used, or none of the hundred from 8080 on; or this machine has no such address.
    """
    host = socket.gethostbyname(host)
    if port is not None:
        return socket.create_server((host, port))
    for candidate in range(DEFAULT_PORT, DEFAULT_PORT + _N_PORTS_TRIED):
        with suppress(OSError):
            return socket.create_server((host, candidate))
    socket.create_server((host, 0)).close()  # where the address is the trouble, that says so
    raise OSError(errno.EADDRINUSE, f"all ports from {DEFAULT_PORT} to {candidate} are taken")


class Server(ThreadingMixIn, WSGIServer):
    """A server on a socket that listens already, with a thread for each request; quiet about them."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, app: WSGIApplication, host: str = LOOPBACK) -> None:
        """Serve an application.

        Args:
            listening: Where.
            app: Put behind the guard.
            host: What `listening` was asked to listen on.
        """
        self._host = host
        TCPServer.__init__(self, listening.getsockname(), _QuietHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = listening.getsockname()
        self.setup_environ()
        self.set_app(app)

    def set_app(self, application: Any) -> None:
        """Serve a WSGI application from now on, behind the guard."""
        super().set_app(read_only(application, self._host))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what went wrong, unless a browser only hung up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        """Say nothing of requests."""


def url(listening: socket.socket) -> str:
    """Return where a browser finds what listens there."""
    host, port = listening.getsockname()
    return f"http://{socket.gethostname() if host == EVERYWHERE else host}:{port}/"
