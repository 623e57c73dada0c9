"""Decompression of request bodies (`Content-Encoding`) within bounds."""

from __future__ import annotations

import zlib
from http import HTTPStatus
from typing import TYPE_CHECKING

from relay.http.refused import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The encodings that a 415 names, also in its header `Accept-Encoding` (RFC 9110, section 15.5.16).
ACCEPTED = "gzip, deflate"

_COMPRESSED = frozenset({"gzip", "x-gzip", "deflate"})

#: zlib's mode that detects a header of gzip or of zlib.
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS

#: zlib's mode for deflate without a header, which some clients send in spite of RFC 9110, section 8.4.1.2.
_RAW = -zlib.MAX_WBITS

#: Maximum members of one gzip body (`cat a.gz b.gz`): each costs a copy of the rest.
MAX_MEMBERS = 16


def is_compressed(headers: Mapping[str, str]) -> bool:
    """Return whether the body has an accepted encoding; raise 415 for any other."""
    given = headers.get("content-encoding")
    if given is None:
        return False
    names = [name for part in given.split(",") if (name := part.strip().lower()) not in {"", "identity"}]
    if not names:
        return False
    if len(names) == 1 and names[0] in _COMPRESSED:
        return True
    raise Refused(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        f"the Content-Encoding must be one of {ACCEPTED}, or none",
        {"Accept-Encoding": ACCEPTED},
    )


def decompress(body: bytes, max_bytes: int) -> bytes:
    """Return the content of a body in gzip, zlib or raw deflate; zeros after gzip are padding.

    Raise 413 for content above `max_bytes`, without producing more than that; 400 if it is damaged or truncated.
    """
    content, rest = bytearray(), body
    for _ in range(MAX_MEMBERS):
        member = zlib.decompressobj(_RAW if rest is body and not _has_header(body) else _GZIP_OR_ZLIB)
        try:
            content += member.decompress(rest, max_bytes + 1 - len(content))
        except zlib.error:
            raise _damaged() from None
        if len(content) > max_bytes:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {max_bytes} bytes once decompressed"
            )
        if not member.eof:
            raise _damaged()
        rest = member.unused_data.lstrip(b"\0")
        if not rest:
            return bytes(content)
    raise _damaged()


def _has_header(data: bytes) -> bool:
    """Return whether data begin with a header of gzip (RFC 1952, section 2.3.1) or zlib (RFC 1950, section 2.2)."""
    is_zlib = data[:1].hex()[1:] == "8" and int.from_bytes(data[:2], "big") % 31 == 0
    return is_zlib or data.startswith(b"\x1f\x8b")


def _damaged() -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, f"the body is truncated, or not compressed as {ACCEPTED}")
