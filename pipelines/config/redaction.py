"""What must never be shown: passwords, tokens and keys that a URL carries.

Masked in the URL itself, and in any text that quotes it.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, unquote_plus

MASK = "***"

_SECRET_NAME = re.compile(
    r"passw|passphrase|^pass$|pwd|secret|token|key|credential|signature|^sig$|odbc_connect",
    re.IGNORECASE,
)
"""Names of query parameters whose values are masked. `passfile` is a path, and stays."""

_MIN_PART = 3
"""Pieces of a password that are shorter are not looked for: they occur in every text."""


def masked_url(url: str) -> str:
    """The URL without its secrets, for logs, saved configurations and MLflow.

    Everything else stays as it was given, letter by letter.
    """
    for start, end in reversed(_spans(url)):
        url = url[:start] + MASK + url[end:]
    return url


def without_secrets(text: str, url: str) -> str:
    """`text` without the secrets of `url`, however they are encoded there: for messages of
    libraries, which quote what they were given.
    """
    for secret in sorted(_secrets(url), key=len, reverse=True):
        text = re.sub("".join(map(_spellings, secret)), MASK, text)
    return text


def _secrets(url: str) -> set[str]:
    given = {url[start:end] for start, end in _spans(url)} - {""}
    # A library that splits at the first "@" of `me:pass@word@host` takes `word@host` for the host,
    # and says so.
    given |= {
        part
        for secret in given
        if "@" in secret
        for part in secret.split("@")
        if len(part) >= _MIN_PART
    }
    return {form for secret in given for form in (secret, unquote(secret), unquote_plus(secret))}


def _spellings(character: str) -> str:
    """Pattern of one character: as it is, percent-encoded once or twice, or escaped as in a quoted
    Python string.
    """
    encoded = "".join(f"%(?:25)?{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
    escaped = (
        re.escape(repr(character)[1:-1]) if character not in "'\"" else re.escape(f"\\{character}")
    )
    return (
        f"(?:(?i:{encoded})|{escaped}|{re.escape(character)}{r'|[+]' if character == ' ' else ''})"
    )


def _spans(url: str) -> list[tuple[int, int]]:
    """Where secrets stand in a URL, from left to right. When in doubt, too much is one."""
    scheme = re.match(r"[\w+.\-]+://", url)
    begin = scheme.end() if scheme else 0
    spans = []
    at = url.rfind("@", begin, _userinfo_limit(url, begin))
    colon = url.find(":", begin, max(at, begin))
    if at >= 0 and scheme is None:
        spans.append((0, at))  # not a URL, but somebody meant it to be one
    elif at >= 0 and colon >= 0 and "/" not in url[begin:colon]:
        spans.append((colon + 1, at))
    elif at >= 0 and _is_web(url):
        spans.append((begin, at))  # a token in the place of the user's name
    tail = spans[-1][1] if spans else begin
    for name in re.compile(r"[?&#]([^=&#?]*)=").finditer(url, tail):
        if _SECRET_NAME.search(unquote(name[1])) and (not spans or name.end() >= spans[-1][1]):
            end = url.find("&", name.end())
            spans.append((name.end(), len(url) if end < 0 else end))
    return spans


def _userinfo_limit(url: str, begin: int) -> int:
    """Where user and password end at the latest.

    In database URLs a password may hold any character, as SQLAlchemy reads them.
    """
    end = re.compile(r"[/?#]|$").search(url, begin)
    assert end is not None
    host_and_port = re.fullmatch(r"[^:@]*(:\d*)?|\[[^\]]*\](:\d*)?", url[begin : end.start()])
    return (
        end.start()
        if _is_web(url) and ("@" in url[begin : end.start()] or host_and_port)
        else len(url)
    )


def _is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))
