"""A PostgreSQL server of Debian's package, in a temporary folder, for as long as a test needs it."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

PASSWORD = "p:a/s@s #1%"
"""One that an address must quote."""


def find(program: str) -> str | None:
    """Return the path of one of the server's programs, which Debian keeps off the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return shutil.which(program) or (str(places[-1]) if places else None)


class Server:
    """A server with a database for each study; it asks for the password of the user `tester`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        # The server refuses to run as root.
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        if self._as_user:
            shutil.chown(self.folder, "postgres")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        secret = self.folder / "secret"
        secret.write_text(PASSWORD)
        self._run("initdb", "--no-sync", "-U", "tester", "--pwfile", str(secret), "--auth=scram-sha-256")
        with (self.folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write(f"port={self.port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories=''\nfsync=off\n")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        path = find(program)
        assert path is not None
        command = [*self._as_user, path, "-D", str(self.folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder)

    def start(self) -> None:
        self._run("pg_ctl", "-w", "-t", "60", "-l", str(self.folder / "log"), "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; `immediate` is as if it had crashed."""
        self._run("pg_ctl", "-w", "-t", "60", "-m", mode, "stop")

    def url(self, database: str, *, user: str = "tester") -> str:
        """Return the address of a database, without the password, which is for PGPASSWORD."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        import psycopg

        arguments = {"host": "127.0.0.1", "port": self.port, "user": "tester", "password": PASSWORD}
        with psycopg.connect(**arguments, dbname=database, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
