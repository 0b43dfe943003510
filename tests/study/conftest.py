"""Studies in a real PostgreSQL server."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from wsgiref.types import WSGIApplication

import pytest

from autopeft.results.dashboard import StudyApp
from autopeft.results.dashboard_server import read_only
from tests.bench import bench
from tests.study.server import PASSWORD, Server, find

__all__ = ["bench"]
_names = (f"study{number}" for number in itertools.count())


@pytest.fixture(scope="session")
def running_server() -> Iterator[Server]:
    if find("pg_ctl") is None:
        pytest.skip("needs PostgreSQL (apt-get install postgresql)")
    pytest.importorskip("psycopg")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server(running_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Return a server that runs; PGPASSWORD holds its password."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    return running_server


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """Return the address of an empty database."""
    name = next(_names)
    server.execute(f"CREATE DATABASE {name}")
    yield server.url(name)
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def page_of() -> Iterator[Callable[[Path], WSGIApplication]]:
    """Return what makes the page of a study; its connections are closed in the end."""
    with ExitStack() as apps:
        yield lambda folder: read_only(apps.enter_context(closing(StudyApp(folder))))
