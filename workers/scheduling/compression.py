"""Bounded decompression of Celery's messages: a few kilobytes can hold a gigabyte of zeros."""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import TYPE_CHECKING

from kombu import compression

if TYPE_CHECKING:
    from collections.abc import Callable

#: Maximum size of a decompressed body in bytes; a message with a larger one cannot be read. The bound of an event is
#: `queue.max_event_bytes`.
MAX_BYTES = 16 * 1024 * 1024

#: kombu's names of the compressions in the standard library.
GZIP, BZIP2, LZMA = "application/x-gzip", "application/x-bz2", "application/x-lzma"


def bound() -> None:
    """Replace kombu's decoders in this process; those that cannot be bounded refuse."""
    decoders: dict[str, Callable[[bytes], bytes]] = {GZIP: _unzip, BZIP2: _bunzip, LZMA: _unlzma}
    for content_type in compression.encoders():  # type: ignore[no-untyped-call]  # kombu types it in part
        encoder, _ = compression.get_encoder(content_type)  # type: ignore[no-untyped-call]  # the same
        compression.register(encoder, decoders.get(content_type, _refuse), content_type)  # type: ignore[no-untyped-call]  # the same


def _refuse(_: bytes) -> bytes:
    raise ValueError("only gzip, zlib, bzip2 and lzma are read")


def _unzip(body: bytes) -> bytes:
    decompressor = zlib.decompressobj()
    return _whole(decompressor.decompress(body, MAX_BYTES), is_whole=decompressor.eof)


def _bunzip(body: bytes) -> bytes:
    decompressor = bz2.BZ2Decompressor()
    return _whole(decompressor.decompress(body, MAX_BYTES), is_whole=decompressor.eof)


def _unlzma(body: bytes) -> bytes:
    decompressor = lzma.LZMADecompressor()
    return _whole(decompressor.decompress(body, MAX_BYTES), is_whole=decompressor.eof)


def _whole(data: bytes, *, is_whole: bool) -> bytes:
    if not is_whole:
        raise ValueError(f"the body is cut off, or more than {MAX_BYTES} bytes")
    return data
