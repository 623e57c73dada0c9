"""What waits on disk while Redis is away: the files of a spool, and what is promised of them.

A spool is a directory on a local disk:

    0000000017.3f9c0a8be1d24c55.sealed   a segment that is sent as it is, and the name of the call that sends it
    0000000018.open                      the last segment, to which events are appended
    damaged                              lines that are no records, kept to be looked at
    lock                                 held while files change: for one write
    sending                              held by who sends what waits, while Redis answers

A segment is lines, a record each, the oldest first: the CRC-32 of the rest in eight hex digits, a space, and JSON
with `at` (when it was written, in milliseconds since the epoch) and `fields` (those of the entry in the inbox):

    5d3c0e41 {"at":1750000000000,"fields":{"event":"…","id":"7c9e…"}}

- What `append` returned from is on the disk, file and directory synced. What it was killed in is there whole, or its
  line is torn and was never acknowledged: a line whose sum is wrong is passed over, and those after it are read.
- A segment leaves whole, oldest first. It is sealed before it is sent, and a sealed one never changes; each try to
  send it is the same call to Redis, which adds it once (append.lua). So who dies between Redis's answer
  and the removal has doubled nothing.
- Any number of processes and threads may share a spool: each change is made under a lock of the kernel's (flock),
  which goes with its holder. Nobody waits for a lock while its holder waits for Redis.
- All files together stay within `max_bytes`. What does not fit is refused, and nothing makes room by leaving early.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from pydantic_core import from_json, to_json

from relay import failpoints
from relay.errors import ConfigurationError, SpoolUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

#: Bytes past which a segment is not appended to: what goes to Redis in one call.
SEGMENT_BYTES = 262_144

#: How often a lock that somebody holds is tried again, in seconds.
LOCK_STEP_SECONDS = 0.005

#: Files are their owner's: an event may name what is nobody else's business.
FILE_MODE, DIRECTORY_MODE = 0o600, 0o700

_SEGMENT = re.compile(r"([0-9]{10})\.(?:open|([0-9a-f]{16})\.sealed)")
_LINE = re.compile(rb"([0-9a-f]{8}) (.+)", re.DOTALL)


class Record(NamedTuple):
    """An event as it waits."""

    #: When it was written, in milliseconds since the epoch.
    at: int
    #: What its entry in the inbox will have.
    fields: dict[str, Any]


class Content(NamedTuple):
    """What a segment's bytes hold."""

    records: list[Record]
    #: Lines that are no records: torn, or changed since.
    damaged: list[bytes]


class Segment(NamedTuple):
    """A file of records."""

    path: Path
    number: int
    #: The name of the call that sends it; empty while it is open.
    call: str


class Standing(NamedTuple):
    """How a spool stands."""

    events: int
    #: Of all its files.
    bytes: int
    #: When the first of the events was written, in milliseconds since the epoch.
    oldest: int | None
    #: Lines that were no records, those kept in `damaged` among them.
    damaged: int


def encode(records: Iterable[Record]) -> bytes:
    """Write records as lines."""
    documents = (to_json({"at": record.at, "fields": record.fields}) for record in records)
    return b"".join(b"%08x %s\n" % (crc32(document), document) for document in documents)


def decode(content: bytes) -> Content:
    """Read what of the bytes is records. A last line without its line break is one if its sum is right."""
    records, damaged = [], []
    lines = content.split(b"\n")
    for line in lines if lines[-1] else lines[:-1]:
        record = _record(line)
        if record is None:
            damaged.append(line)
        else:
            records.append(record)
    return Content(records, damaged)


def _record(line: bytes) -> Record | None:
    match = _LINE.fullmatch(line)
    if match is None or int(match[1], 16) != crc32(match[2]):
        return None
    try:
        document = from_json(match[2])
        return Record(int(document["at"]), dict(document["fields"]))
    except (ValueError, TypeError, KeyError):
        return None  # no writer of ours; what cannot be read must not hold up what can


class Spool:
    """A spool's directory; made if need be, its parents too. One that vanishes later has nothing waiting.

    Methods raise `SpoolUnavailable` when the disk refuses, or the lock is not to be had within `patience_seconds`.
    """

    def __init__(self, directory: Path, *, max_bytes: int, patience_seconds: float) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self._patience_seconds = patience_seconds
        try:
            _make_directory(directory)
            with self._locked():
                pass
        except (OSError, SpoolUnavailable) as error:
            raise ConfigurationError(f"the spool {directory} cannot be used: {error}") from error

    def is_empty(self) -> bool:
        """Tell whether nothing waits. Who appends at this very moment is not waited for."""
        with self._disk():
            return not self._segments()

    def append(self, entries: Iterable[Mapping[str, Any]], *, call: str = "") -> None:
        """Put entries behind what waits; if they were tried, under the name of that `call`, to be tried with it."""
        with self._locked():
            self._write(self._segments(), entries, call)

    def append_behind(self, entries: Iterable[Mapping[str, Any]]) -> bool:
        """`append` if anything waits; else do nothing and return False."""
        with self._locked():
            segments = self._segments()
            if segments:
                self._write(segments, entries, "")
            return bool(segments)

    @contextmanager
    def sending(self) -> Iterator[bool]:
        """Be the one who sends while in the context; or be told, by False, that somebody else is."""
        with self._disk(), self._lock("sending", patience_seconds=0) as ours:
            yield ours

    def first(self) -> tuple[Segment, Content] | None:
        """Return what is to be sent next, sealed; None if nothing waits. For who is `sending`."""
        with self._locked():
            segments = self._segments()
            if not segments:
                return None
            segment = segments[0] if segments[0].call else self._seal(segments[0])
            return segment, decode(segment.path.read_bytes())

    def remove(self, segment: Segment, damaged: Iterable[bytes] = ()) -> None:
        """Let go of a segment that Redis has; its damaged lines are kept. For who is `sending`."""
        kept = b"".join(line + b"\n" for line in damaged)
        with self._locked():
            if kept:
                self._append_to(self.directory / "damaged", kept)
            failpoints.passing("before:spool-remove")
            segment.path.unlink(missing_ok=True)
            _sync(self.directory)

    def standing(self) -> Standing:
        """Tell how it stands, without stopping anybody: what leaves meanwhile may be missed."""
        with self._disk():
            contents = [decode(_read(segment.path)) for segment in self._segments()]
            records = [record for content in contents for record in content.records]
            kept = _read(self.directory / "damaged").count(b"\n")
            return Standing(
                events=len(records),
                bytes=self._size(),
                oldest=min((record.at for record in records), default=None),
                damaged=kept + sum(len(content.damaged) for content in contents),
            )

    def _segments(self) -> list[Segment]:
        matches = [match for file in self._files() if (match := _SEGMENT.fullmatch(file.name))]
        segments = [Segment(self.directory / match[0], int(match[1]), match[2] or "") for match in matches]
        return sorted(segments, key=lambda segment: segment.number)

    def _write(self, segments: list[Segment], entries: Iterable[Mapping[str, Any]], call: str) -> None:
        now = time.time_ns() // 1_000_000
        lines = encode(Record(now, dict(fields)) for fields in entries)
        size = self._size()
        if size + len(lines) > self.max_bytes:
            raise SpoolUnavailable(
                f"the spool {self.directory} is full: {size} bytes, and spool.max_bytes is {self.max_bytes}"
            )
        last = segments[-1] if segments else None
        if last and not last.call and not call and last.path.stat().st_size + len(lines) <= SEGMENT_BYTES:
            self._append_to(last.path, lines)
        else:
            self._append_to(self._path(last.number + 1 if last else 1, call), lines)

    def _append_to(self, path: Path, lines: bytes) -> None:
        """Append and sync; what cannot be written whole is taken back, for it is refused."""
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                lines = b"\n" + lines  # who wrote before was killed in it: the torn line ends here
            try:
                _write_all(file, lines)
                failpoints.passing("after:spool-write")
                os.fsync(file)
                if not size:
                    _sync(self.directory)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(file, size)
                raise
        finally:
            os.close(file)
        failpoints.passing("after:spool-sync")

    def _seal(self, segment: Segment) -> Segment:
        """Name the call that sends it. On the disk before it is sent: with another name it would be another call."""
        call = new_call()
        path = self._path(segment.number, call)
        segment.path.rename(path)
        _sync(self.directory)
        failpoints.passing("after:spool-seal")
        return Segment(path, segment.number, call)

    def _path(self, number: int, call: str) -> Path:
        return self.directory / (f"{number:010}.{call}.sealed" if call else f"{number:010}.open")

    def _size(self) -> int:
        return sum(_size_of(file) for file in self._files())

    def _files(self) -> list[os.DirEntry[str]]:
        """Return the files; of a directory that is gone, none."""
        try:
            with os.scandir(self.directory) as files:
                return list(files)
        except FileNotFoundError:
            return []

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._disk(), self._lock("lock", patience_seconds=self._patience_seconds) as held:
            if not held:
                raise SpoolUnavailable(f"another process holds {self.directory / 'lock'}, and does not let go")
            yield

    def _lock(self, name: str, *, patience_seconds: float) -> AbstractContextManager[bool]:
        """Hold a lock, if it is to be had in time. Makes the directory anew if it is gone."""
        if not self.directory.is_dir():
            _make_directory(self.directory)
        return _flock(self.directory / name, patience_seconds=patience_seconds)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SpoolUnavailable(f"the spool {self.directory} cannot be used: {error}") from error


def new_call() -> str:
    """Return a name for a call to Redis that nobody else makes."""
    return secrets.token_hex(8)


@contextmanager
def _flock(path: Path, *, patience_seconds: float) -> Iterator[bool]:
    """Hold a lock, if it is to be had in time. Each use opens the file anew: so threads exclude each other too."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        held = _acquire(lock, patience_seconds)
        try:
            yield held
        finally:
            if held:  # closing would not do: a child that was forked meanwhile has it open too
                fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)


def _acquire(lock: int, patience_seconds: float) -> bool:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOCK_STEP_SECONDS)
        else:
            return True


def _make_directory(directory: Path) -> None:
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    for each in missing:
        _sync(each.parent)


def _sync(directory: Path) -> None:
    """Make the names in a directory last: a file that is synced may still be without one after a loss of power."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _write_all(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def _read(path: Path) -> bytes:
    """Return a file's bytes; of one that is gone, none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _size_of(file: os.DirEntry[str]) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
