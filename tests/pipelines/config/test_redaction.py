"""No secret of a URL is shown, and everything else of it is."""

from __future__ import annotations

from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from pipelines.config.redaction import MASK, masked_url, without_secrets

SECRET = "s3cr3t-W0rd"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cr3t-W0rd@db:5432/scores", "postgresql://me:***@db:5432/scores"),
        (
            "postgresql+psycopg://me:s3cr3t-W0rd@db/scores?sslmode=require",
            "postgresql+psycopg://me:***@db/scores?sslmode=require",
        ),
        (
            "postgresql://db/scores?user=me&password=s3cr3t-W0rd",
            "postgresql://db/scores?user=me&password=***",
        ),
        (
            "postgresql://db/scores?password=s3cr3t-W0rd&sslmode=require",
            "postgresql://db/scores?password=***&sslmode=require",
        ),
        (
            "postgresql://me:s3cr3t-W0rd@db/s?sslpassword=s3cr3t-W0rd",
            "postgresql://me:***@db/s?sslpassword=***",
        ),
        ("postgresql://db/s?PassWord=s3cr3t-W0rd", "postgresql://db/s?PassWord=***"),
        ("postgresql://db/s?pass%77ord=s3cr3t-W0rd", "postgresql://db/s?pass%77ord=***"),
        ("postgresql://db/s?password=s3cr3t-W0rd%26more", "postgresql://db/s?password=***"),
        ("postgresql://db/s?password=a#s3cr3t-W0rd", "postgresql://db/s?password=***"),
        (
            "postgresql://db/s?passfile=/home/me/.pgpass",
            "postgresql://db/s?passfile=/home/me/.pgpass",
        ),
        ("postgresql://me:pa@s3cr3t-W0rd@db/s", "postgresql://me:***@db/s"),
        ("postgresql://me:pa/s3cr3t-W0rd?x@db/s", "postgresql://me:***@db/s"),
        ("postgresql://:s3cr3t-W0rd@db/s", "postgresql://:***@db/s"),
        ("postgresql://me@db/s", "postgresql://me@db/s"),
        (
            "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Ds3cr3t-W0rd",
            "mssql+pyodbc:///?odbc_connect=***",
        ),
        (
            "https://me:s3cr3t-W0rd@mlflow.example.org:5000/path@2",
            "https://me:***@mlflow.example.org:5000/path@2",
        ),
        ("https://s3cr3t-W0rd@mlflow.example.org", "https://***@mlflow.example.org"),
        ("https://me:pa/s3cr3t-W0rd@mlflow.example.org", "https://me:***@mlflow.example.org"),
        ("https://h:5000/x?access_token=s3cr3t-W0rd&v=1", "https://h:5000/x?access_token=***&v=1"),
        ("https://h/x?v=1#token=s3cr3t-W0rd", "https://h/x?v=1#token=***"),
        ("https://h/x?api_key=s3cr3t-W0rd", "https://h/x?api_key=***"),
        ("https://h/x?client_secret=s3cr3t-W0rd", "https://h/x?client_secret=***"),
        ("http://h:5000/path@x", "http://h:5000/path@x"),
        ("http://[::1]:5000/path@x", "http://[::1]:5000/path@x"),
        ("postgresql:/me:s3cr3t-W0rd@db/s", "***@db/s"),
        ("me:s3cr3t-W0rd@db", "***@db"),
        ("sqlite:///outputs/scores.db", "sqlite:///outputs/scores.db"),
        ("sqlite:////data/a@b/key=1.db", "sqlite:////data/a@b/key=1.db"),
        ("sqlite://", "sqlite://"),
        ("databricks", "databricks"),
        ("", ""),
    ],
)
def test_masked_url(url: str, shown: str) -> None:
    assert masked_url(url) == shown
    assert SECRET not in masked_url(url)
    assert masked_url(masked_url(url)) == shown


def test_a_mask_survives_in_the_url_that_is_saved() -> None:
    """`resume=true` looks for the mask to know that the secret must be given again."""
    assert MASK in masked_url("postgresql://db/s?password=x")
    assert MASK in masked_url("postgresql://me:x@db/s")


@pytest.mark.parametrize(
    "password",
    [
        "plain",
        "p@ss/w:rd?",
        "50%",
        "a b+c",
        "pässwörd",
        "quo'te\"s",
        "back\\slash",
        "100%25",
        ".*[x",
        "a&b#c",
    ],
)
def test_text_without_secrets_in_any_encoding(password: str) -> None:
    spellings = {
        password,
        quote(password, safe=""),
        quote(password),
        quote_plus(password),
        quote(password, safe="").lower(),
        repr(password)[1:-1],
    }
    spellings.add(quote(quote(password, safe=""), safe=""))
    text = "; ".join(f"failed with <{spelling}>" for spelling in sorted(spellings))
    for url in (
        f"postgresql://me:{quote(password, safe='')}@db/scores",
        f"postgresql://db/scores?password={quote_plus(password)}",
    ):
        cleaned = without_secrets(text, url)
        assert cleaned == "; ".join(["failed with <***>"] * len(spellings))


def test_pieces_of_a_password_that_is_not_encoded() -> None:
    url = "postgresql://me:first@second@db/s"
    host = make_url(url).host
    assert host == "second@db"
    assert without_secrets(f"cannot resolve {host}", url) == "cannot resolve ***@db"


def test_text_without_a_secret_stays() -> None:
    text = "connection to server at db failed"
    for url in ("postgresql://me@db/s", "sqlite:///x.db", "not a url", "postgresql://me:@db/s"):
        assert without_secrets(text, url) == text


@given(
    st.text(min_size=4, max_size=12).filter(lambda text: not text.isspace()),
    st.sampled_from(["user", "query"]),
)
def test_any_password_is_gone(password: str, place: str) -> None:
    marked = "Zq" + password + "qZ"
    encoded = quote(marked, safe="")
    url = (
        f"postgresql://me:{encoded}@db/s"
        if place == "user"
        else f"postgresql://db/s?password={encoded}"
    )
    parsed = make_url(url)
    assert (parsed.password if place == "user" else parsed.query["password"]) == marked
    for text in (url, marked, repr(marked), masked_url(url)):
        cleaned = without_secrets(text, url)
        assert marked not in cleaned
        assert encoded not in cleaned
        assert "Zq" not in cleaned
