"""Who is signed in? A cookie that needs no memory: signed, with an end, by a key that is made of the operator token.

So a session ends by its time, or for all at once with a changed token; signing out only takes the cookie away from
the browser that had it.
"""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass

#: A shift.
SESSION_SECONDS = 8 * 3600

#: Hexadecimal digits of a session's name: enough to tell those of a day apart.
NAME_LENGTH = 10

_COOKIE = re.compile(r"([A-Za-z0-9_-]{22})\.([0-9]{1,12})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A browser that showed the operator token; `csrf` has to come with each of its forms."""

    ends_at: int
    csrf: str
    #: What log lines call it; the cookie cannot be derived from it.
    name: str

    def allows(self, csrf: str) -> bool:
        """Tell whether a form is one of ours, made for this session."""
        return hmac.compare_digest(csrf.encode(), self.csrf.encode())


def is_operator(given: str, token: str) -> bool:
    """Compare a token in a time that tells nothing of it, not even its length."""
    return hmac.compare_digest(_mac(b"token", given), _mac(b"token", token))


def begin(token: str, now: float) -> str:
    """Make the cookie of a new session; `now` in seconds since the epoch."""
    signed = f"{secrets.token_urlsafe(16)}.{int(now) + SESSION_SECONDS}"
    return f"{signed}.{_mac(_key(token), signed).hex()}"


def read(cookie: str, token: str, now: float) -> Session | None:
    """Read a cookie; None if it is not of this token, or its session is over. Without a token there is no session."""
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
