"""The spool: files that keep events while Redis is unavailable.

A spool is a directory on a local disk:

    0000000017.3f9c0a8be1d24c55.sealed   a segment to be sent as it is, and the name of the call that sends it
    0000000018.open                      the last segment, to which events are appended
    damaged                              lines that are no records, kept for inspection
    lock                                 locked (flock) while files change: for one write
    sending                              locked by the process that sends, while Redis answers

A segment is lines, a record each, the oldest first: the CRC-32 of the rest in eight hex digits, a space, and JSON
with `at` (when it was written, in milliseconds since the epoch) and `fields` (those of the inbox entry):

    5d3c0e41 {"at":1750000000000,"fields":{"event":"…","id":"7c9e…"}}

- An event is on the disk, file and directory synced, before `append` returns. If the process is killed before that,
  the record is whole or its line is torn. A line with a wrong checksum is skipped, and the lines after it are read.
- Segments are sent whole, oldest first. A segment is sealed before it is sent, and then never changes. Each attempt
  to send it is the same call to Redis, which applies a call once (append.lua). So a process that is killed between
  Redis's answer and the removal of the segment duplicates nothing.
- Any number of processes and threads may share a spool. Each change is made under a lock of the kernel, which ends
  with its holder. No process waits for a lock that is held while Redis answers.
- All files together stay within `max_bytes`. Events that do not fit are refused; nothing is removed to make room.

Decision 23 says why this is no SQLite database.
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
    from pathlib import Path

#: Maximum bytes of a segment that is appended to, because a segment is one call to Redis.
SEGMENT_BYTES = 262_144

#: Interval of attempts to take a lock, in seconds.
LOCK_STEP_SECONDS = 0.005

#: Files are readable by their owner alone: events may be confidential.
FILE_MODE, DIRECTORY_MODE = 0o600, 0o700

_SEGMENT = re.compile(r"([0-9]{10})\.(?:open|([0-9a-f]{16})\.sealed)")
_LINE = re.compile(rb"([0-9a-f]{8}) (.+)", re.DOTALL)


class Record(NamedTuple):
    """A spooled event."""

    #: When it was written, in milliseconds since the epoch.
    at: int
    #: The fields of its inbox entry.
    fields: dict[str, Any]


class Content(NamedTuple):
    """The parsed bytes of a segment."""

    records: list[Record]
    #: Lines that are no records: torn, or changed since.
    damaged: list[bytes]


class Segment(NamedTuple):
    """A file of records."""

    path: Path
    number: int
    #: The name of the call that sends it; empty while it is open.
    call: str


class SpoolStatus(NamedTuple):
    """What `relay spool status` shows."""

    events: int
    #: Of all files.
    bytes: int
    #: When the oldest event was written, in milliseconds since the epoch.
    oldest: int | None
    #: Lines that are no records, those in `damaged` included.
    damaged: int


def encode(records: Iterable[Record]) -> bytes:
    """Return records as lines."""
    documents = (to_json({"at": record.at, "fields": record.fields}) for record in records)
    return b"".join(b"%08x %s\n" % (crc32(document), document) for document in documents)


def decode(content: bytes) -> Content:
    """Parse lines; the last one needs no line break if its checksum is right."""
    records, damaged = [], []
    for line in content.removesuffix(b"\n").split(b"\n") if content else ():
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
        return None  # written by another program; it must not block the records after it


class Spool:
    """A spool's directory, created if missing, with its parents; one that is removed later has no events.

    Methods raise `SpoolUnavailable` if the disk refuses, or the lock is not free within `patience_seconds`.
    """

    def __init__(self, directory: Path, *, max_bytes: int, patience_seconds: float) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self._patience_seconds = patience_seconds
        try:
            with self._locked():
                pass
        except SpoolUnavailable as error:
            raise ConfigurationError(str(error)) from error

    def is_empty(self) -> bool:
        """Return whether there are no events; an append that has not returned yet is not waited for."""
        with self._disk_errors():
            return not self._segments()

    def append(self, entries: Iterable[Mapping[str, Any]], *, call: str = "") -> None:
        """Append entries; those that a call to Redis may have added already, as a segment of that `call`."""
        with self._locked():
            self._write(self._segments(), entries, call)

    def append_unless_empty(self, entries: Iterable[Mapping[str, Any]]) -> bool:
        """Append entries if the spool has events; else do nothing and return False."""
        with self._locked():
            segments = self._segments()
            if segments:
                self._write(segments, entries, "")
            return bool(segments)

    @contextmanager
    def sending(self) -> Iterator[bool]:
        """Be the one process that sends while in the context; yield False if another one is sending."""
        with self._lock("sending", patience_seconds=0) as is_ours:
            yield is_ours

    def first(self) -> tuple[Segment, Content] | None:
        """Return the oldest segment, sealed; None if there is none. Only while `sending`."""
        with self._locked():
            segments = self._segments()
            if not segments:
                return None
            segment = segments[0] if segments[0].call else self._seal(segments[0])
            return segment, decode(segment.path.read_bytes())

    def remove(self, segment: Segment, damaged: Iterable[bytes] = ()) -> None:
        """Remove a segment that Redis has, and keep its damaged lines. Only while `sending`."""
        kept = b"".join(line + b"\n" for line in damaged)
        with self._locked():
            if kept:
                self._append_to(self.directory / "damaged", kept)
            failpoints.passing("before:spool-remove")
            segment.path.unlink(missing_ok=True)
            _sync(self.directory)

    def status(self) -> SpoolStatus:
        """Return the status without taking the lock: segments that are removed meanwhile may be missed."""
        with self._disk_errors():
            contents = [decode(_read(segment.path)) for segment in self._segments()]
            records = [record for content in contents for record in content.records]
            kept = _read(self.directory / "damaged").count(b"\n")
            return SpoolStatus(
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
        """Append and sync; if that fails, undo it, because the events are refused."""
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                lines = b"\n" + lines  # ends the torn line of a process that was killed
            try:
                rest = memoryview(lines)
                while rest:
                    rest = rest[os.write(file, rest) :]
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
        """Name the call that sends the segment, and sync the name: after a restart it must be the same call."""
        call = new_call()
        path = self._path(segment.number, call)
        segment.path.rename(path)
        _sync(self.directory)
        failpoints.passing("after:spool-seal")
        return Segment(path, segment.number, call)

    def _path(self, number: int, call: str) -> Path:
        return self.directory / (f"{number:010}.{call}.sealed" if call else f"{number:010}.open")

    def _size(self) -> int:
        size = 0
        for file in self._files():
            with suppress(FileNotFoundError):
                size += file.stat().st_size
        return size

    def _files(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.directory) as files:
                return list(files)
        except FileNotFoundError:
            return []

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock("lock", patience_seconds=self._patience_seconds) as is_ours:
            if not is_ours:
                raise SpoolUnavailable(f"another process holds {self.directory / 'lock'} and does not release it")
            yield

    @contextmanager
    def _lock(self, name: str, *, patience_seconds: float) -> Iterator[bool]:
        """Lock a file and yield True, or False if it is not free in time; create the directory if it is missing.

        Each use opens the file, so that threads exclude each other too.
        """
        with self._disk_errors():
            if not self.directory.is_dir():
                _make_directory(self.directory)
            file = os.open(self.directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            try:
                yield _acquire(file, patience_seconds)
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # a child forked meanwhile has the file open: closing is not enough
                os.close(file)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SpoolUnavailable(f"the spool {self.directory} cannot be used: {error}") from error


def new_call() -> str:
    """Return a name that no other call to Redis has."""
    return secrets.token_hex(8)


def _acquire(file: int, patience_seconds: float) -> bool:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    """Sync the names in a directory: after a power loss a synced file may still have no name."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _read(path: Path) -> bytes:
    """Return a file's bytes; none if it is removed."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
