"""Addresses of databases: what is taken, and that no password is ever shown."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import StudyError
from autopeft.spec.storage_url import check_storage, masked, password_of, without_password
from autopeft.spec.study import StudySpec, make_study

SECRET = "hunter2"
STUDY = {"model": "m", "data": "d.csv", "objectives": ["accuracy", "trainable_params"]}


@pytest.mark.parametrize(
    ("given_url", "kept"),
    [
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgres://u:hunter2@h:5433/db?sslmode=require", "postgresql://u@h:5433/db?sslmode=require"),
        ("postgresql+psycopg://h/db?password=hunter2&sslmode=require", "postgresql://h/db?sslmode=require"),
        ("postgresql://a%40b:hunter2@[::1]:5432/db", "postgresql://a%40b@[::1]:5432/db"),
        ("sqlite:///runs/x.db", "sqlite:///runs/x.db"),
    ],
)
def test_what_is_kept_of_an_address(given_url: str, kept: str) -> None:
    url = check_storage(given_url)
    assert without_password(url) == kept
    assert password_of(url) == (SECRET if SECRET in given_url else None)
    assert check_storage(kept) == kept


@given(password=st.text(min_size=1))
def test_no_password_survives(password: str) -> None:
    """Oracle: SQLAlchemy quotes the password into the address."""
    from sqlalchemy.engine import URL

    written = URL.create("postgresql", "u", password, "h", 5432, "db").render_as_string(hide_password=False)
    url = check_storage(written)
    assert password_of(url) == password
    assert without_password(url) == "postgresql://u@h:5432/db"


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://u:{SECRET}@h/db",
        f"postgresql://u:{SECRET}@h",
        f"postgresql://u:{SECRET}/x@h/db",
        f"u:{SECRET}@h/db",
        f"postgresql://u:{SECRET}@h:port/db",
        "sqlite:///",
        f"sqlite://{SECRET}",
    ],
)
def test_a_bad_address_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(StudyError, match=r"^storage: .*(postgresql://user@host|sqlite:///FILE)") as caught:
        make_study({**STUDY, "storage": url})
    assert SECRET not in str(caught.value)


def test_a_study_never_shows_its_password() -> None:
    spec = make_study({**STUDY, "storage": f"postgresql://u:{SECRET}@h/db"})
    assert spec.storage is not None
    assert SECRET in spec.storage, "it is needed to connect"
    for shown in (repr(spec), str(spec), json.dumps(spec.to_dict()), spec.model_dump_json(), str(spec.model_dump())):
        assert SECRET not in shown
    assert StudySpec(**spec.to_dict()).storage == "postgresql://u@h/db"


def test_what_a_server_says_is_masked() -> None:
    assert masked("failed: pass=a%2Fb or a/b.", ["a/b", None]) == "failed: pass=*** or ***."
