"""Text of other programs: byte order marks, other encodings, and bytes that Python could not decode."""

from __future__ import annotations

import codecs
import re

#: Byte order marks of refused encodings. UTF-32 first: its little-endian mark begins with that of UTF-16.
_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)

#: Lone surrogates to which Python decodes bytes that do not fit the locale's encoding (PEP 383).
_ESCAPED = re.compile("[\udc80-\udcff]")


def without_mark(body: bytes) -> bytes:
    """Return a body without a byte order mark of UTF-8."""
    return body[3:] if body.startswith(codecs.BOM_UTF8) else body


def other_encoding(body: bytes) -> str | None:
    """Return the encoding of a JSON text if it is recognisably not UTF-8, otherwise None.

    A JSON text begins with an ASCII character: a NUL among its first two bytes is half of a character of UTF-16
    (RFC 4627, section 3).
    """
    for mark, name in _OTHER_MARKS:
        if body.startswith(mark):
            return name
    start = body[:4]
    if len(start) > 1 and 0 in start[:2]:
        return "UTF-32" if start.count(0) == 3 else "UTF-16"  # noqa: PLR2004 - of four bytes
    return None


def is_utf8(body: bytes | str) -> bool:
    """Return whether a body is UTF-8, or text that can be encoded as UTF-8."""
    try:
        _ = body.encode() if isinstance(body, str) else body.decode()
    except UnicodeError:
        return False
    return True


def restored(text: str) -> str:
    """Return text of the command line or the environment, decoded as UTF-8 regardless of the locale.

    With an ASCII locale (LC_ALL=POSIX) and without UTF-8 mode, Python escapes every byte above 127. Raises
    `ValueError` if the bytes are not UTF-8.
    """
    if not _ESCAPED.search(text):
        return text
    try:
        return text.encode(errors="surrogateescape").decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except UnicodeEncodeError:  # surrogates that are no escaped bytes
        return text
