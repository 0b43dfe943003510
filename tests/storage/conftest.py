"""Studies in a real PostgreSQL server."""

import itertools
from collections.abc import Iterator

import pytest

from tests.storage.server import PASSWORD, Server, find

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
