"""The spool's files: an acknowledged event is read back, whatever happened to the bytes after it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ConfigurationError, QueueUnavailable, SpoolUnavailable
from relay.producer.spool import SEGMENT_BYTES, Content, Record, Spool, SpoolStatus, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

#: Two of them do not fit in one segment.
BIG = "x" * (SEGMENT_BYTES // 2)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
fields = st.fixed_dictionaries({"event": texts}, optional={"id": texts, "source": texts, "time": texts})
records = st.lists(st.builds(Record, st.integers(min_value=0, max_value=2**43), fields), max_size=6)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return open_spool(tmp_path / "spool")


def open_spool(directory: Path, *, max_bytes: int = 10 * SEGMENT_BYTES, patience_seconds: float = 30) -> Spool:
    return Spool(directory, max_bytes=max_bytes, patience_seconds=patience_seconds)


def entry(event_id: str, event: str = "{}") -> dict[str, Any]:
    return {"event": event.encode(), "id": event_id}


def sent(spool: Spool) -> list[str]:
    """Send and remove all segments, and return the ids in their order."""
    ids = []
    with spool.sending() as ours:
        assert ours
        while first := spool.first():
            segment, content = first
            ids += [record.fields["id"] for record in content.records]
            spool.remove(segment, content.damaged)
    return ids


def events_and_damaged(spool: Spool) -> tuple[int, int]:
    standing = spool.status()
    return standing.events, standing.damaged


def segments(spool: Spool) -> list[Path]:
    return sorted(path for path in spool.directory.iterdir() if path.suffix in {".open", ".sealed"})


# Bytes


@given(records)
def test_what_is_written_is_read(written: list[Record]) -> None:
    assert decode(encode(written)) == Content(written, [])


@given(records, st.data())
def test_whatever_prefix_survives_is_a_prefix_of_the_records_and_its_torn_tail(
    written: list[Record], data: st.DataObject
) -> None:
    content = encode(written)
    survives = content[: data.draw(st.integers(0, len(content)))]
    read = decode(survives)
    assert read.records == written[: len(read.records)]
    whole = encode(read.records)
    assert survives.startswith(whole.removesuffix(b"\n"))
    torn = survives[len(whole) :]
    assert read.damaged == ([torn] if torn else [])


@given(records.filter(bool), st.data())
def test_a_byte_that_changed_costs_the_record_it_is_in(written: list[Record], data: st.DataObject) -> None:
    lines = [encode([record]) for record in written]
    number = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.integers(0, len(lines[number]) - 2))
    changed = bytearray(lines[number])
    changed[place] ^= data.draw(st.integers(1, 255))
    read = decode(b"".join([*lines[:number], bytes(changed), *lines[number + 1 :]]))
    assert read.records == written[:number] + written[number + 1 :]
    assert read.damaged


@given(records, st.binary(max_size=200))
def test_nonsense_behind_the_records_is_told_and_takes_none_along(written: list[Record], nonsense: bytes) -> None:
    read = decode(encode(written) + nonsense)
    assert read.records == written
    assert b"\n".join(read.damaged) == nonsense.removesuffix(b"\n")


@pytest.mark.parametrize(
    "document", ["{}", "[]", "no json", '{"at":1}', '{"at":1,"fields":null}', '{"at":"x","fields":{}}']
)
def test_line_with_a_sum_but_no_record_is_damaged(document: str) -> None:
    line = f"{crc32(document.encode()):08x} {document}".encode()
    good = Record(1, {"event": "{}"})
    assert decode(line + b"\n" + encode([good])) == Content([good], [line])


# Files


def test_entries_leave_in_their_order_over_segments(spool: Spool) -> None:
    for number in range(7):
        spool.append([entry(f"{number}-a", BIG), entry(f"{number}-b")])
    assert len(segments(spool)) == 7

    assert sent(spool) == [f"{number}-{part}" for number in range(7) for part in "ab"]
    assert spool.is_empty()
    assert segments(spool) == []


def test_small_entries_share_a_segment(spool: Spool) -> None:
    for number in range(50):
        spool.append([entry(str(number))])
    assert len(segments(spool)) == 1


def test_what_was_tried_is_a_segment_of_its_own_under_the_name_it_was_tried_with(spool: Spool) -> None:
    spool.append([entry("1")])
    spool.append([entry("2")], call="0123456789abcdef")
    spool.append([entry("3")])
    assert len(segments(spool)) == 3

    calls = {}
    with spool.sending():
        while first := spool.first():
            segment, content = first
            calls[content.records[0].fields["id"]] = segment.call
            spool.remove(segment)
    assert list(calls) == ["1", "2", "3"]
    assert calls["2"] == "0123456789abcdef"
    assert len(set(calls.values())) == 3
    assert all(calls.values())


def test_sealed_segment_keeps_its_name_and_is_not_appended_to(spool: Spool) -> None:
    spool.append([entry("1")])
    with spool.sending():
        first = spool.first()
    spool.append([entry("2")])
    with spool.sending():
        assert spool.first() == first, "tried again it must be the same call"
    assert sent(spool) == ["1", "2"]


def test_behind_appends_only_if_something_waits(spool: Spool) -> None:
    assert not spool.append_unless_empty([entry("1")])
    assert spool.is_empty()
    spool.append([entry("1")])
    assert spool.append_unless_empty([entry("2")])
    assert sent(spool) == ["1", "2"]


def test_torn_tail_ends_where_the_next_record_begins(spool: Spool) -> None:
    spool.append([entry("1")])
    (path,) = segments(spool)
    line = path.read_bytes()
    path.write_bytes(line + line[: len(line) // 2])
    assert events_and_damaged(spool) == (1, 1)

    spool.append([entry("2")])
    assert events_and_damaged(spool) == (2, 1)
    assert sent(spool) == ["1", "2"]
    assert (spool.directory / "damaged").read_bytes() == line[: len(line) // 2] + b"\n"
    assert events_and_damaged(spool) == (0, 1)


def test_segment_of_nothing_but_damage_is_passed_over(spool: Spool) -> None:
    for number in range(2):
        spool.append([entry(str(number), BIG)])
    segments(spool)[0].write_bytes(b"")
    assert sent(spool) == ["1"]


def test_bound_is_kept_and_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, max_bytes=1000)
    taken: list[str] = []

    def fill() -> None:
        for number in range(1000):
            spool.append([entry(str(number))])
            taken.append(str(number))

    with pytest.raises(SpoolUnavailable, match=r"is full: \d+ bytes, and spool.max_bytes is 1000"):
        fill()
    used = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert used == spool.status().bytes
    assert 900 < used <= 1000
    assert sent(spool) == taken


def test_what_is_damaged_counts_against_the_bound(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, max_bytes=1000)
    (tmp_path / "damaged").write_bytes(b"x" * 999 + b"\n")
    with pytest.raises(SpoolUnavailable):
        spool.append([entry("1")])


def test_refused_write_leaves_no_trace(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.append([entry("1")])
    (path,) = segments(spool)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SpoolUnavailable, match="No space left on device"):
            spool.append([entry("2")])
    assert path.read_bytes() == before
    assert sent(spool) == ["1"]


def test_file_and_directory_are_synced_before_append_returns(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = watched_syncs(monkeypatch)
    spool.append([entry("1")])
    (path,) = segments(spool)
    assert synced == [(path, path.stat().st_size), (spool.directory, 0)]
    spool.append([entry("2")])
    assert synced[2:] == [(path, path.stat().st_size)]


def test_seal_and_removal_are_synced(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.append([entry("1")])
    synced = watched_syncs(monkeypatch)
    with spool.sending():
        first = spool.first()
        assert synced == [(spool.directory, 1)], "the call's name lasts before the call is made"
        assert first
        spool.remove(first[0])
    assert synced[1:] == [(spool.directory, 0)]


def watched_syncs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int]]:
    """Note what is synced: a file with its size at that moment, a directory with the sealed segments in it."""
    synced: list[tuple[Path, int]] = []
    real = os.fsync

    def fsync(file: int) -> None:
        real(file)
        path = Path(f"/proc/self/fd/{file}").readlink()
        synced.append((path, len(list(path.glob("*.sealed"))) if path.is_dir() else path.stat().st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    return synced


def test_files_are_their_owners(spool: Spool) -> None:
    spool.append([entry("1")])
    assert spool.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in spool.directory.iterdir()} == {0o600}


def test_directory_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "spool"):
        with pytest.raises(ConfigurationError, match="file"):
            open_spool(path)


def test_directory_that_is_gone_has_nothing_waiting_and_is_made_anew(spool: Spool) -> None:
    spool.append([entry("lost")])
    shutil.rmtree(spool.directory)
    assert spool.is_empty()
    assert spool.status() == SpoolStatus(events=0, bytes=0, oldest=None, damaged=0)
    assert not spool.append_unless_empty([entry("1")])

    shutil.rmtree(spool.directory)
    assert sent(spool) == []

    shutil.rmtree(spool.directory)
    spool.append([entry("1")])
    assert sent(spool) == ["1"]
    assert spool.directory.stat().st_mode & 0o777 == 0o700


def test_directory_that_goes_while_its_segment_is_sent_is_no_error(spool: Spool) -> None:
    spool.append([entry("1")])
    with spool.sending():
        first = spool.first()
        assert first
        shutil.rmtree(spool.directory)
        spool.remove(first[0])
    assert spool.is_empty()


def test_file_in_the_directorys_place_is_an_error(spool: Spool) -> None:
    shutil.rmtree(spool.directory)
    spool.directory.write_text("")
    for use in (spool.is_empty, spool.status, spool.first, lambda: spool.append([entry("1")])):
        with pytest.raises(QueueUnavailable, match="cannot be used"):
            use()


# Many at once


def test_only_one_sends(spool: Spool) -> None:
    with spool.sending() as ours:
        assert ours
        with open_spool(spool.directory).sending() as also:
            assert not also
    with spool.sending() as again:
        assert again


def test_lock_that_is_never_let_go_is_an_error_in_time(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, patience_seconds=0.05)
    with (tmp_path / "lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SpoolUnavailable, match="does not release it"):
            spool.append([entry("1")])
    spool.append([entry("1")])


def test_child_forked_while_a_lock_is_held_does_not_keep_it(spool: Spool) -> None:
    reading, writing = os.pipe()
    with spool.sending() as ours:
        assert ours
        child = os.fork()
        if not child:
            os.read(reading, 1)
            os._exit(0)
    try:
        with spool.sending() as again:
            assert again
    finally:
        os.write(writing, b"x")
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_threads_that_append_while_one_sends_lose_and_double_nothing(spool: Spool) -> None:
    left: list[str] = []

    def append(name: int) -> None:
        for number in range(30):
            spool.append([entry(f"{name}-{number}", "x" * 20_000)])

    threads = [threading.Thread(target=append, args=(name,)) for name in range(4)]
    run_all(threads, meanwhile=lambda: left.extend(sent(spool)))
    left += sent(spool)

    assert len(left) == len(set(left)) == 4 * 30
    for name in range(4):
        of_one = [each for each in left if each.startswith(f"{name}-")]
        assert of_one == [f"{name}-{number}" for number in range(30)], "the order of each is kept"


def run_all(threads: list[threading.Thread], meanwhile: Callable[[], None]) -> None:
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        meanwhile()
    for thread in threads:
        thread.join()
