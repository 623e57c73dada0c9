"""What the stand-in does with a request: what is recorded, what goes out, when, and how it ends.

Decided whole from the contract's ruling and the fault; the connection only plays the steps.
"""

from __future__ import annotations

from http import HTTPStatus
from itertools import repeat
from typing import TYPE_CHECKING, Final, NamedTuple

from pydantic_core import to_json

from relay.sandbox.faults import Answer, Delay, Drip, Hang, Reset

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from relay.sandbox.contract import Ruling
    from relay.sandbox.faults import Effect

#: Between a part of an answer and the reset, in seconds, so that the client has read the part.
PAUSE_BEFORE_RESET_SECONDS: Final = 0.02
#: How much of a body that drips without a pause goes out in one write, in bytes.
BLOCK_BYTES: Final = 64 * 1024

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


class Wait(NamedTuple):
    """Go on after so many seconds."""

    seconds: float


class Write(NamedTuple):
    """Send these bytes."""

    data: bytes


class ResetNow(NamedTuple):
    """Reset the connection; nothing follows."""


class WaitForever(NamedTuple):
    """Never go on."""


Step = Wait | Write | ResetNow | WaitForever


class Script(NamedTuple):
    """What is recorded of a request, and the steps of its answer."""

    status: int | None
    processed: bool
    steps: Iterable[Step]
    recorded: bool = True


def write_script(  # noqa: PLR0911 - one return for each effect
    ruling: Ruling, effect: Effect | None, *, keep_alive: bool
) -> Script:
    """Decide what is done with a request that got this ruling and met with this fault."""
    own = answer_of(ruling, keep_alive=keep_alive)
    accepted = _is_success(ruling.status)
    match effect:
        case None:
            return Script(ruling.status, accepted, (Write(own),))
        case Delay(seconds):
            return Script(ruling.status, accepted, (Wait(seconds), Write(own)))
        case Answer(status, headers) if accepted or not _is_success(status):
            data = http_answer(status, headers=headers, keep_alive=keep_alive)
            return Script(status, _is_success(status), (Write(data),))
        case Answer():
            return Script(ruling.status, processed=False, steps=(Write(own),))
        case Hang():
            return Script(None, processed=False, steps=repeat(WaitForever()))
        case Drip(length_bytes, seconds_per_byte):
            head = http_answer(ruling.status, length_bytes=length_bytes, keep_alive=keep_alive)
            return Script(ruling.status, accepted, _drip(head, length_bytes, seconds_per_byte))
        case Reset("before"):
            return Script(None, processed=False, steps=(ResetNow(),), recorded=False)
        case Reset("after"):
            return Script(None, accepted, (ResetNow(),))
        case Reset():
            part = own[: own.index(b"\r\n") + 2] + b"X-Unfinished: "
            steps = (Write(part), Wait(PAUSE_BEFORE_RESET_SECONDS), ResetNow())
            return Script(ruling.status, accepted, steps)


def answer_of(ruling: Ruling, *, keep_alive: bool) -> bytes:
    """Give the API's own answer to a ruling."""
    if ruling.status == HTTPStatus.ACCEPTED and keep_alive:
        return _ACCEPTED
    headers: tuple[tuple[str, str], ...] = ()
    if ruling.status == HTTPStatus.UNAUTHORIZED:
        headers = (("WWW-Authenticate", "Bearer"),)
    elif ruling.status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers = (("Allow", "POST"),)
    if not ruling.error:
        return http_answer(ruling.status, headers=headers, keep_alive=keep_alive)
    document = {"error": ruling.error, **({"field": ruling.field} if ruling.field else {})}
    return json_answer(ruling.status, document, headers=headers, keep_alive=keep_alive)


def json_answer(
    status: int, document: object, *, headers: Sequence[tuple[str, str]] = (), keep_alive: bool = True
) -> bytes:
    """Give an answer with a JSON body."""
    body = to_json(document)
    head = http_answer(
        status,
        headers=(("Content-Type", "application/json"), *headers),
        length_bytes=len(body),
        keep_alive=keep_alive,
    )
    return head + body


def http_answer(
    status: int, *, headers: Sequence[tuple[str, str]] = (), length_bytes: int = 0, keep_alive: bool = True
) -> bytes:
    """Give an answer's head; a body of `length_bytes` is to follow."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        lines.append(f"Content-Length: {length_bytes}")
    if not keep_alive:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _drip(head: bytes, length_bytes: int, seconds_per_byte: float) -> Iterator[Step]:
    yield Write(head)
    block = 1 if seconds_per_byte else BLOCK_BYTES
    for sent in range(0, length_bytes, block):
        if seconds_per_byte:
            yield Wait(seconds_per_byte)
        yield Write(b"." * min(block, length_bytes - sent))


def _is_success(status: int) -> bool:
    return 200 <= status < 300  # noqa: PLR2004 - HTTP's own numbers


_ACCEPTED: Final = http_answer(HTTPStatus.ACCEPTED)
