"""Sessions without a store: a cookie with an end time, signed by a key derived from the operator token. Pure.

So a session ends at its time, and all end when the token changes; signing out only deletes the browser's cookie.
"""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass

#: The length of a shift.
SESSION_SECONDS = 8 * 3600

#: Hexadecimal digits of a session's name: enough to distinguish those of a day.
NAME_LENGTH = 10

_COOKIE = re.compile(r"([A-Za-z0-9_-]{22})\.([0-9]{1,12})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A signed-in browser. Each of its forms must have `csrf`."""

    ends_at: int
    csrf: str
    #: Its name in log lines; the cookie cannot be derived from it.
    name: str

    def allows(self, csrf: str) -> bool:
        """Return whether a form was made for this session."""
        return hmac.compare_digest(csrf.encode(), self.csrf.encode())


def is_operator(given: str, token: str) -> bool:
    """Return whether this is the token, in a time that depends on neither its content nor its length."""
    return hmac.compare_digest(_mac(b"token", given), _mac(b"token", token))


def begin(token: str, now: float) -> str:
    """Return the cookie of a new session; `now` in seconds since the epoch."""
    signed = f"{secrets.token_urlsafe(16)}.{int(now) + SESSION_SECONDS}"
    return f"{signed}.{_mac(_key(token), signed).hex()}"


def read(cookie: str, token: str, now: float) -> Session | None:
    """Return the session of a cookie; None if it is over, not of this token, or there is no token."""
    match = _COOKIE.fullmatch(cookie)
    if match is None or not token:
        return None
    nonce, ends_at, mac = match.groups()
    key = _key(token)
    if not hmac.compare_digest(_mac(key, f"{nonce}.{ends_at}").hex(), mac) or int(ends_at) <= now:
        return None
    return Session(
        ends_at=int(ends_at),
        csrf=_mac(key, f"csrf {nonce}.{ends_at}").hex(),
        name=_mac(key, f"name {nonce}.{ends_at}").hex()[:NAME_LENGTH],
    )


def _key(token: str) -> bytes:
    return _mac(b"relay console session", token)


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(errors="replace"), "sha256")
