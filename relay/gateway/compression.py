"""Bodies with a `Content-Encoding`: which encodings are accepted, and decompression within bounds."""

from __future__ import annotations

import zlib
from http import HTTPStatus
from typing import TYPE_CHECKING

from relay.http.refused import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What a 415 names, also in its header `Accept-Encoding` (RFC 9110, section 15.5.16).
ACCEPTED = "gzip, deflate"

_COMPRESSED = frozenset({"gzip", "x-gzip", "deflate"})

#: Makes zlib read the header of gzip or of its own format, as the data have it.
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS

#: Deflate without a header, as some clients send it in spite of RFC 9110, section 8.4.1.2.
_RAW = -zlib.MAX_WBITS

#: Members that one gzip body may be made of (`cat a.gz b.gz`): each costs a copy of the rest.
MAX_MEMBERS = 16


def is_compressed(headers: Mapping[str, str]) -> bool:
    """Return whether the body has an encoding that is accepted; 415 for others."""
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

    413 for more than so many bytes, of which no more are made; 400 if the body is damaged or not whole.
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
    """Return whether data begin as gzip (RFC 1952, section 2.3.1) or zlib (RFC 1950, section 2.2) do."""
    is_zlib = data[:1].hex()[1:] == "8" and int.from_bytes(data[:2], "big") % 31 == 0
    return is_zlib or data.startswith(b"\x1f\x8b")


def _damaged() -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, f"the body is not whole, or not compressed as {ACCEPTED}")
