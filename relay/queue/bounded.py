"""Read stream entries of unknown size in bounded memory.

Any producer may `XADD` an entry of up to 500 MB, and no command of Redis returns an entry's id or size without its
contents. The readers of this module parse the reply while it arrives: they keep the beginning of each value, and end
the connection where the rest is of no use. So this process holds a few kilobytes of an entry, however large it is.

Redis itself copies the entry into its reply once (and in a Lua script twice, which is why no script reads the head of
the inbox). `proto-max-bulk-len` of redis.conf bounds that: docs/operations.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from relay.connections.failover import wrong_server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from redis import Redis
    from redis.exceptions import ResponseError

#: Bytes of a value, and of a field's name, that are kept of an entry that is cut; and how many fields.
KEPT_VALUE_BYTES, KEPT_NAME_BYTES, KEPT_FIELDS = 4096, 128, 32

#: Bytes of a reply that one read from the socket takes.
_CHUNK_BYTES = 65_536

#: Bytes of a reply to a wait that are read before the connection is ended instead.
_WAIT_BYTES = 65_536

#: Values of an entry with too many fields that are counted to learn its size, and bytes.
_COUNTED_VALUES, _COUNTED_BYTES = 500_000, 16_777_216

T = TypeVar("T")


class BoundedEntry(NamedTuple):
    """An entry: its fields and values in order, and its size in bytes.

    Of one that is cut (`is_whole` is false) the first fields, each shortened. `is_exact` if `size` is the
    size, or the part of it that was read.
    """

    entry_id: str
    flat: list[bytes]
    size: int
    is_whole: bool = True
    is_exact: bool = True


def first(client: Redis, stream: str, *, most_bytes: int, most_fields: int) -> BoundedEntry | None:
    """Return the first entry of a stream, cut if it is larger than `most_bytes` or has more fields; None for none."""

    def read(reply: _Reply) -> BoundedEntry | None:
        if reply.length() <= 0:
            return None
        return _entry(reply, most_bytes=most_bytes, most_values=2 * most_fields)

    return _ask(client, read, "XRANGE", stream, "-", "+", "COUNT", 1)


def first_id(client: Redis, stream: str) -> str | None:
    """Return the id of a stream's first entry, None for none."""
    entry = first(client, stream, most_bytes=_WAIT_BYTES, most_fields=KEPT_FIELDS)
    return entry.entry_id if entry else None


def page(client: Redis, stream: str, *, start: str, count: int) -> list[BoundedEntry]:
    """Return entries from `start` on, with their first fields, each shortened."""

    def read(reply: _Reply) -> list[BoundedEntry]:
        return [_shortened_entry(reply) for _ in range(reply.length())]

    return _ask(client, read, "XRANGE", stream, start, "+", "COUNT", count)


def wait(client: Redis, after: Mapping[str, str], seconds: float) -> str | None:
    """Wait for an entry later than these ids of these streams; return the first one's id, None when none came."""

    def read(reply: _Reply) -> str | None:
        streams = reply.length()
        is_map = reply.is_map
        found = None
        for _ in range(streams):
            if not is_map:
                reply.length()  # of the pair of a stream's name and its entries
            reply.value(reply.bulk_length())
            for _ in range(reply.length()):
                entry = _entry(reply, most_bytes=_WAIT_BYTES, most_values=2 * KEPT_FIELDS)
                found = found or entry.entry_id
                if not entry.is_whole:  # the connection has ended
                    return found
        return found

    milliseconds = max(1, round(seconds * 1000))
    return _ask(client, read, "XREAD", "COUNT", 1, "BLOCK", milliseconds, "STREAMS", *after, *after.values())


def shortened(flat: list[bytes]) -> list[bytes]:
    """Return what is kept of the fields and values of an entry that is cut."""
    kept = [
        part[: KEPT_VALUE_BYTES if position % 2 else KEPT_NAME_BYTES]
        for position, part in enumerate(flat[: 2 * KEPT_FIELDS])
    ]
    return kept if len(kept) % 2 == 0 else [*kept, b""]


def _entry(reply: _Reply, *, most_bytes: int, most_values: int) -> BoundedEntry:
    """Read an entry, and leave the reply where the entry is larger than that."""
    reply.length()
    entry_id = reply.value(reply.bulk_length()).decode()
    values = reply.length()
    flat: list[bytes] = []
    size = 0
    for position in range(values):
        length = reply.bulk_length()
        size += length
        if size > (most_bytes if values <= most_values else _COUNTED_BYTES) or position > _COUNTED_VALUES:
            flat.append(reply.value(min(length, KEPT_VALUE_BYTES)))
            reply.leave()
            return BoundedEntry(entry_id, shortened(flat), size, is_whole=False, is_exact=position == values - 1)
        if values <= most_values:
            flat.append(reply.value(length))
            continue
        part = reply.value(length, KEPT_VALUE_BYTES if position < 2 * KEPT_FIELDS else 0)
        if position < 2 * KEPT_FIELDS:
            flat.append(part)
    if values > most_values:
        return BoundedEntry(entry_id, shortened(flat), size, is_whole=False)
    return BoundedEntry(entry_id, flat, size)


def _shortened_entry(reply: _Reply) -> BoundedEntry:
    reply.length()
    entry_id = reply.value(reply.bulk_length()).decode()
    flat: list[bytes] = []
    size = 0
    for position in range(reply.length()):
        length = reply.bulk_length()
        size += length
        part = reply.value(length, KEPT_VALUE_BYTES if position < 2 * KEPT_FIELDS else 0)
        if position < 2 * KEPT_FIELDS:
            flat.append(part)
    return BoundedEntry(entry_id, flat, size, is_whole=size == sum(map(len, flat)))


class _Reply:
    """A reply that is parsed while it arrives, in either version of the protocol."""

    def __init__(self, connection: Any) -> None:
        self.is_left = False
        self._connection = connection
        self._buffer = bytearray()
        #: Whether the head that was read last is a map's.
        self.is_map = False

    def leave(self) -> None:
        """Read nothing more: the connection ends here."""
        self.is_left = True

    def length(self) -> int:
        """Read the head of an array or a map, and return how many members it has; -1 for null."""
        line = self._line()
        while line[:1] == b">":  # out of band; its members are bulks
            for _ in range(int(line[1:])):
                self.value(self.bulk_length(), 0)
            line = self._line()
        self.is_map = line[:1] == b"%"
        if line[:1] == b"-":
            error: ResponseError = self._connection._parser.parse_error(line[1:].decode(errors="replace"))  # noqa: SLF001
            raise wrong_server(error) or error
        return -1 if line[:1] == b"_" else int(line[1:])

    def bulk_length(self) -> int:
        """Read the head of a string, and return its length."""
        line = self._line()
        if line[:1] != b"$":
            raise RedisConnectionError("a reply of Redis is not of the kind that was asked for")
        return int(line[1:])

    def value(self, length: int, keep: int | None = None) -> bytes:
        """Read a string of this length, and return its first bytes."""
        keep = length if keep is None else min(length, keep)
        kept = bytearray()
        left = length + 2  # the line's end
        while left:
            if not self._buffer:
                self._fill()
            part = self._buffer[:left]
            del self._buffer[:left]
            kept += part[: max(0, keep - len(kept))]
            left -= len(part)
        return bytes(kept[:keep])

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _fill(self) -> None:
        try:
            chunk = self._connection._sock.recv(_CHUNK_BYTES)  # noqa: SLF001 - redis-py reads a reply whole or not at all
        except TimeoutError as error:
            raise RedisTimeoutError("Timeout reading from socket") from error
        except OSError as error:
            raise RedisConnectionError(f"Error while reading from socket: {error}") from error
        if not chunk:
            raise RedisConnectionError("Connection closed by server.")
        self._buffer += chunk


def _ask(client: Redis, read: Callable[[_Reply], T], *command: str | int) -> T:
    """Send a command on a connection of the client's own pool, and read its reply; try again as the client does."""
    connection: Any = client.connection_pool.get_connection()

    def attempt() -> T:
        connection.send_command(*command)
        reply = _Reply(connection)
        result = read(reply)
        if reply.is_left:
            connection.disconnect()
        return result

    try:
        return connection.retry.call_with_retry(attempt, lambda _: connection.disconnect())  # type: ignore[no-any-return]
    except BaseException:
        connection.disconnect()  # whatever is left of the reply belongs to no other command
        raise
    finally:
        client.connection_pool.release(connection)
