"""Whether a request may report."""

from __future__ import annotations

import hmac
from enum import Enum

_SCHEME = "bearer "


class Entry(Enum):
    """What a request's token opens."""

    GRANTED = "granted"
    MISSING = "missing"
    WRONG = "wrong"


def admit(authorization: str | None, token: str) -> Entry:
    """Judge an `Authorization` header as HTTP servers give it (RFC 6750, section 2.1; octets read as Latin-1).

    Takes equally long for every wrong token of one length. Without a configured token all may report: settings
    permit that on loopback only.
    """
    if not token:
        return Entry.GRANTED
    if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME:
        return Entry.MISSING
    given = authorization[len(_SCHEME) :].strip()
    if not given:
        return Entry.MISSING
    return Entry.GRANTED if hmac.compare_digest(given.encode("latin-1"), token.encode()) else Entry.WRONG
