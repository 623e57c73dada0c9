"""What names an event: attributes as CloudEvents has them, and the one id that they make.

Who takes CloudEvents may treat two with the same source and the same id as one (specification 1.0, `id`). An id of
the relay counts once whatever its source, and has at most `MAX_ID_BYTES`. So it is made of both:

    ci.example.com/jobs/7#4711      source#id, if the source has no `#` and it fits
    sha256:<64 hex digits>          else: the digest of the source, a NUL, and the id

Two pairs never make one id: a NUL is no character of theirs, and what has no `#` is no readable one.
"""

from __future__ import annotations

import re
from hashlib import sha256

from relay.errors import InvalidEvent
from relay.events.event import MAX_ID_BYTES

#: What CloudEvents' type String may not have (section "Type System"), and the line separators that an event may not.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def required(given: object, field: str) -> str:
    """Trim and check the text that an event must have there; else raise `InvalidEvent` with that field."""
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
    """Join what `required` gave of an event's source and id."""
    readable = f"{source}#{own_id}"
    if "#" not in source and len(readable.encode()) <= MAX_ID_BYTES:
        return readable
    return "sha256:" + sha256(b"\0".join((source.encode(), own_id.encode()))).hexdigest()
