"""The relay's id of a CloudEvent, made of its source and id.

A consumer of CloudEvents may treat two with the same source and the same id as one (specification 1.0, `id`). The
relay's ids are compared without a source and have at most `MAX_ID_BYTES`:

    ci.example.com/jobs/7#4711      source#id, if the source has no `#` and it fits
    sha256:<64 hex digits>          else: the digest of the source, a NUL, and the id

Two pairs never have the same id: neither part can contain a NUL, and a digest contains no `#`.
"""

from __future__ import annotations

import re
from hashlib import sha256

from relay.errors import InvalidEvent
from relay.events.event import MAX_ID_BYTES

#: Characters excluded by CloudEvents' type String (section "Type System"), and line separators.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def required(given: object, field: str) -> str:
    """Return a mandatory text, stripped; raise `InvalidEvent` with that field if it is missing or malformed."""
    if given is None:
        raise InvalidEvent(field, "is missing")
    if not isinstance(given, str):
        raise InvalidEvent(field, "must be a string")
    text = given.strip()
    if not text:
        raise InvalidEvent(field, "is missing")
    if _UNPRINTABLE.search(text):
        raise InvalidEvent(field, "must not have control characters or line breaks")
    return text


def event_id(source: str, own_id: str) -> str:
    """Return the relay's id, of a source and an id returned by `required`."""
    readable = f"{source}#{own_id}"
    if "#" not in source and len(readable.encode()) <= MAX_ID_BYTES:
        return readable
    return "sha256:" + sha256(b"\0".join((source.encode(), own_id.encode()))).hexdigest()
