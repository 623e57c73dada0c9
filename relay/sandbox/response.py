"""A response of the API, and the steps by which a connection plays it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from pydantic_core import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

#: Between the last bytes before a reset and the reset, in seconds, so that the client has read them.
BEFORE_RESET_SECONDS: Final = 0.02
#: Bytes of a filler body that go out in one write if there is no pause between them.
BLOCK_BYTES: Final = 64 * 1024

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


class Write(NamedTuple):
    """Send these bytes. `has_status`: the client has the status after them; `is_last`: the response is complete."""

    data: bytes
    has_status: bool = False
    is_last: bool = False


class Wait(NamedTuple):
    """Pause."""

    seconds: float


class Hang(NamedTuple):
    """Wait until the client leaves."""


class Reset(NamedTuple):
    """Reset the connection (RST)."""


class Close(NamedTuple):
    """Close the connection."""


Step = Write | Wait | Hang | Reset | Close


class ResetAt(StrEnum):
    """Where a connection is reset."""

    ACCEPT = "at accept"
    HEADERS = "after the request's headers"
    REQUEST = "after the request"
    STATUS_LINE = "after the status line"
    BODY = "in the body"


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """How the API responds to one request.

    `filler_bytes` is the length of a filler body instead of `body`. `drip_seconds` is a pause before each byte of the
    body, with `drips_head` of the head, too. `raw` is sent instead of head and body, as it is. `processed` is whether
    the API took the event; None: if the status is a 2xx.
    """

    status: int = HTTPStatus.ACCEPTED.value
    headers: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    body: bytes = b""
    filler_bytes: int = 0
    content_length: int | None = None  #: another length than the body's
    raw: bytes | None = None
    delay_seconds: float = 0.0
    drip_seconds: float = 0.0
    drips_head: bool = False
    hangs: bool = False
    reset: ResetAt | None = None
    closes: bool = False
    processed: bool | None = None

    @property
    def is_processed(self) -> bool:
        """Whether the API took the event."""
        return is_success(self.status) if self.processed is None else self.processed

    @property
    def has_status(self) -> bool:
        """Whether the client gets a status."""
        return not self.hangs and self.reset is not ResetAt.REQUEST

    def head(self, *, closes: bool = False) -> bytes:
        """Return the status line and headers."""
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Unknown')}"]
        for name, values in self.headers.items():
            lines += [f"{name}: {value}" for value in ((values,) if isinstance(values, str) else values)]
        if self.status not in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            length = self.filler_bytes or len(self.body) if self.content_length is None else self.content_length
            lines.append(f"Content-Length: {length}")
        if closes or self.closes:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def steps(self, *, closes: bool = False) -> Iterator[Step]:
        """Yield the steps of the response; `closes`: the client asked to close the connection after it."""
        if self.delay_seconds:
            yield Wait(self.delay_seconds)
        if self.hangs:
            yield Hang()
        elif self.reset:
            yield from self._reset_steps(self.head(closes=closes))
        elif self.raw is not None:
            yield Write(self.raw, has_status=self.raw.startswith(b"HTTP/1.1 "), is_last=True)
        elif self.drip_seconds or self.filler_bytes:
            yield from self._slow_steps(self.head(closes=closes))
        else:
            yield Write(self.head(closes=closes) + self.body, has_status=True, is_last=True)
        if closes or self.closes:
            yield Close()

    def _reset_steps(self, head: bytes) -> Iterator[Step]:
        if self.reset is not ResetAt.REQUEST:
            in_body = self.reset is ResetAt.BODY
            status_line = head[: head.index(b"\r\n") + 2]
            part = head + self.body[: len(self.body) // 2] if in_body else status_line + b"X-Unfinished: "
            yield Write(part, has_status=True)
            yield Wait(BEFORE_RESET_SECONDS)
        yield Reset()

    def _slow_steps(self, head: bytes) -> Iterator[Step]:
        """Yield the head, at once or by bytes, and the body by bytes or blocks."""
        length, block = self.filler_bytes or len(self.body), 1 if self.drip_seconds else BLOCK_BYTES
        slow_head = head if self.drips_head else b""
        for number, byte in enumerate(slow_head, 1):
            yield Wait(self.drip_seconds)
            yield Write(bytes((byte,)), has_status=number == len(head), is_last=number == len(head) and not length)
        if not slow_head:
            yield Write(head, has_status=True, is_last=not length)
        for sent in range(0, length, block):
            if self.drip_seconds:
                yield Wait(self.drip_seconds)
            size = min(block, length - sent)
            data = b"." * size if self.filler_bytes else self.body[sent : sent + size]
            yield Write(data, is_last=sent + size == length)


def json_response(status: int, document: object, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with a JSON body."""
    return Response(
        status=status, headers={"Content-Type": "application/json", **(headers or {})}, body=to_json(document)
    )


def is_success(status: int) -> bool:
    """Return whether a status is a 2xx."""
    return 200 <= status < 300  # noqa: PLR2004 - HTTP's own numbers
