"""The address of a database that keeps a study's record, and what of it may be shown: never its password."""

from collections.abc import Iterable
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")
SQLITE = "sqlite"
FORM = "storage is postgresql://user@host:5432/database, or sqlite:///file for one driver, or left out"
_SECRETS = ("password", "sslpassword", "passfile")
"""Query arguments of an address that nobody is shown."""


def check_storage(url: str) -> str:
    """Return an address in its usual form.

    Raises:
        ValueError: It is none. The message leaves the address out: a mistyped one may show a password anywhere.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ValueError(f"{FORM}; what was given has no '://' (it is not repeated here: it may hold a password)")
    if scheme == SQLITE:
        if not urlsplit(url).path.strip("/") or urlsplit(url).netloc:
            raise ValueError("a SQLite storage is sqlite:///FILE, with three slashes, or four before an absolute path")
        return url
    if scheme not in POSTGRESQL:
        raise ValueError(f"{FORM}; what was given begins with {scheme[:20]!r}")
    try:
        parts = urlsplit(url)
        n_ports = parts.port or 0  # raises where it is no number
    except ValueError:
        raise ValueError(
            f"{FORM}; a host and a port could not be told apart: a password with : / @ ? # % in it is written with "
            "%3A %2F %40 %3F %23 %25, or better left to the environment variable PGPASSWORD"
        ) from None
    del n_ports
    if not parts.path.strip("/") or "/" in parts.path.strip("/"):
        raise ValueError(f"{FORM}; what was given names no database after its host")
    return urlunsplit(parts._replace(scheme="postgresql"))


def is_postgresql(url: str) -> bool:
    """Return whether an address that has been checked is one of a PostgreSQL server, which drivers can share."""
    return url.startswith("postgresql://")


def password_of(url: str) -> str | None:
    """Return the password in an address, or None."""
    parts = urlsplit(url)
    if parts.password is not None:
        return unquote(parts.password)
    return dict(parse_qsl(parts.query)).get("password")


def without_password(url: str) -> str:
    """Return an address as it may be shown and kept: PostgreSQL's own ways supply the password when it is used."""
    parts = urlsplit(url)
    if parts.scheme == SQLITE:
        return url
    query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name not in _SECRETS])
    return urlunsplit(SplitResult(parts.scheme, _place(parts), parts.path, query, ""))


def _place(parts: SplitResult) -> str:
    host = parts.netloc.rpartition("@")[2]
    return f"{quote(unquote(parts.username), safe='')}@{host}" if parts.username else host


def masked(text: str, secrets: Iterable[str | None]) -> str:
    """Return a text of another library with each secret replaced by `***`."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
    return text
