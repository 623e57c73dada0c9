"""Records of the requests and of the responses to them.

The last `keep` requests are held in memory; the counts are not limited. All of it belongs to the server's event loop:
other threads read it through `Sandbox`.
"""

from __future__ import annotations

import base64
import json
from collections import Counter, deque
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic_core import to_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BufferedWriter
    from pathlib import Path

#: Default number of requests held in memory, and of idempotency keys remembered to count repeats.
KEEP: Final = 1_000_000
#: Environments counted by name; further ones are counted together under `OTHERS`.
MAX_ENVIRONMENTS: Final = 100_000
#: Name of the environments beyond `MAX_ENVIRONMENTS` in the counts.
OTHERS: Final = "(others)"
#: Name in the counts of requests whose body is not readable.
UNREADABLE: Final = "(unreadable)"
#: Maximum lines of the record file held in memory; each flush of the server writes them, too.
MAX_HELD_LINES: Final = 5_000


class RecordedRequest(NamedTuple):
    """One request and the response to it.

    `status` is the response's, which may be incomplete; None without a response. `processed` is whether the API took
    the event: repeats are counted over these. `fault` is the kind of the rule that was applied.
    """

    sequence: int
    monotonic_seconds: float
    unix_seconds: float
    connection: int
    path: str
    idempotency_key: str | None
    environment: str | None
    status: int | None
    processed: bool
    fault: str | None
    body: bytes

    @property
    def event(self) -> Any:
        """Return the body from JSON, or raise ValueError."""
        return json.loads(self.body)

    def document(self) -> dict[str, object]:
        """Return the request as a JSON document: `body` as text, or `body_base64` if it is not UTF-8."""
        document: dict[str, object] = self._asdict()
        body = document.pop("body")
        assert isinstance(body, bytes)  # noqa: S101 - _asdict loses the type
        try:
            document["body"] = body.decode()
        except UnicodeDecodeError:
            document["body_base64"] = base64.b64encode(body).decode()
        return document


class Counts(NamedTuple):
    """Sums over all requests.

    `received` counts every request to the API that was recorded, `accepted` those it processed.
    `repeats` counts processed requests whose idempotency key had been processed before: 0 without faults.
    `unanswered` are recorded requests without a status, `unreadable` is input that was not HTTP.
    """

    received: int
    accepted: int
    unanswered: int
    unreadable: int
    distinct_idempotency_keys: int
    repeats: int
    by_status: dict[int, int]
    by_environment: dict[str, dict[str, int]]


class Records:
    """All requests since the start or the last reset."""

    def __init__(
        self,
        *,
        keep: int = KEEP,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        file: RecordFile | None = None,
    ) -> None:
        self._keep = keep
        self._monotonic = monotonic
        self._wall = wall
        self._file = file
        self.on_change: Callable[[], None] | None = None  #: called after each request, if set
        self.reset()

    def reset(self) -> None:
        """Remove all records; the next request has sequence number 1 again. The record file is kept."""
        # Plain tuples: the garbage collector stops tracking them, but never named ones.
        self._rows: deque[tuple[Any, ...]] = deque(maxlen=self._keep)
        self._processed_by_key: dict[str, bool] = {}
        self._by_status: Counter[int] = Counter()
        self._by_environment: dict[str, list[int]] = {}
        self.received = 0
        self.accepted = 0
        self._unanswered = 0
        self._unreadable = 0
        self._distinct_keys = 0
        self._repeats = 0

    def add(
        self,
        *,
        connection: int,
        path: bytes,
        idempotency_key: bytes | None,
        environment: str | None,
        status: int | None,
        processed: bool,
        fault: str | None,
        body: bytes,
    ) -> None:
        """Record a request, before the response."""
        self.received = sequence = self.received + 1
        key = None if idempotency_key is None else idempotency_key.decode("latin-1")
        row = (
            sequence,
            self._monotonic(),
            self._wall(),
            connection,
            path.decode("latin-1"),
            key,
            environment,
            status,
            processed,
            fault,
            body,
        )
        self._rows.append(row)
        self._count(key, environment, status, processed=processed)
        if self._file is not None:
            self._file.append(RecordedRequest._make(row))
        if self.on_change is not None:
            self.on_change()

    def count_unreadable(self) -> None:
        """Count input that was not HTTP."""
        self._unreadable += 1

    def counts(self) -> Counts:
        """Return the sums."""
        return Counts(
            received=self.received,
            accepted=self.accepted,
            unanswered=self._unanswered,
            unreadable=self._unreadable,
            distinct_idempotency_keys=self._distinct_keys,
            repeats=self._repeats,
            by_status=dict(sorted(self._by_status.items())),
            by_environment={
                name: {"received": received, "accepted": accepted}
                for name, (received, accepted) in self._by_environment.items()
            },
        )

    def requests(
        self, *, offset: int = 0, limit: int | None = None, environment: str | None = None
    ) -> list[RecordedRequest]:
        """Return the requests in memory, oldest first; `offset` and `limit` count those of `environment`."""
        held = map(RecordedRequest._make, self._rows)
        wanted = (each for each in held if environment is None or each.environment == environment)
        return list(islice(wanted, offset, None if limit is None else offset + limit))

    def flush(self) -> None:
        """Write the lines held in memory to the record file."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Write the rest and close the record file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _count(self, key: str | None, environment: str | None, status: int | None, *, processed: bool) -> None:
        if status is None:
            self._unanswered += 1
        else:
            self._by_status[status] += 1
        row = self._environment_row(environment)
        row[0] += 1
        if processed:
            self.accepted += 1
            row[1] += 1
        if key is not None:
            self._count_key(key, processed=processed)

    def _environment_row(self, environment: str | None) -> list[int]:
        name = UNREADABLE if environment is None else environment
        row = self._by_environment.get(name)
        if row is None:
            if len(self._by_environment) >= MAX_ENVIRONMENTS:
                name = OTHERS
            row = self._by_environment.setdefault(name, [0, 0])
        return row

    def _count_key(self, key: str, *, processed: bool) -> None:
        seen = self._processed_by_key.get(key)
        if seen is None:
            self._distinct_keys += 1
            if len(self._processed_by_key) >= self._keep:
                # The oldest key is removed: beyond `keep` keys a late repeat counts as distinct.
                del self._processed_by_key[next(iter(self._processed_by_key))]
            self._processed_by_key[key] = processed
        elif processed:
            if seen:
                self._repeats += 1
            self._processed_by_key[key] = True


class RecordFile:
    """A JSON line for each request, appended in order.

    Lines are held in memory until the server's next flush: a killed sandbox loses at most those.
    """

    def __init__(self, path: Path) -> None:
        self._file: BufferedWriter = path.open("ab")
        self._lines: list[bytes] = []

    def append(self, request: RecordedRequest) -> None:
        """Add a line."""
        self._lines.append(to_json(request.document()) + b"\n")
        if len(self._lines) >= MAX_HELD_LINES:
            self.flush()

    def flush(self) -> None:
        """Write the lines held in memory."""
        if self._lines:
            self._file.write(b"".join(self._lines))
            self._lines.clear()
            self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._file.close()
