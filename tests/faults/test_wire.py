"""Broken connections, hostile answers, and an API that cannot be trusted."""

from __future__ import annotations

import gzip
import ssl
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from faults.api import GARBAGE, OK, interim_flood
from faults.ground import scenario
from faults.proxy import Proxy
from servers import Authority, Server, answer

from relay.queue.health import HealthState
from relay.sandbox.response import ResetAt, Response

if TYPE_CHECKING:
    from pathlib import Path

    from faults.api import Attempt, Behaviour
    from faults.ground import Ground, Worker

#: No test here waits for a time-out; these are long enough for a busy machine.
PATIENCE = {"RELAY_API__TIMEOUT": "4s", "RELAY_API__CONNECT_TIMEOUT": "3s", "RELAY_WORKER__LEASE": "6s"}

#: Deadline until a client reaches a recovered API: the circuit breaker's longest pause in a test, and a tolerance for
#: a busy machine.
BACK_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Trick:
    """The API's response to an event's first attempt, and the expected number of attempts."""

    first: Response
    attempts: int


def play(tricks: dict[str, Trick]) -> Behaviour:
    """Apply the tricks in turns, by the events' numbers, to every second event."""
    names = list(tricks)

    def behave(attempt: Attempt) -> Response:
        name = trick_of(attempt, names)
        return tricks[name].first if name and not attempt.earlier else OK

    return behave


def trick_of(attempt: Attempt, names: list[str]) -> str:
    number = int(attempt.event_id.removeprefix("event-"))
    return "" if number % 2 else names[number // 2 % len(names)]


def attempts_by_trick(attempts: list[Attempt], names: list[str]) -> dict[str, set[int]]:
    """Return the number of attempts of each trick's events."""
    counts: dict[str, Counter[str]] = {}
    for attempt in attempts:
        counts.setdefault(trick_of(attempt, names), Counter())[attempt.event_id] += 1
    return {name: set(count.values()) for name, count in counts.items()}


def start_worker(ground: Ground) -> Worker:
    """Start a worker without avoidable waits and with unlimited attempts."""
    [worker] = ground.start_workers(1, RELAY_DELIVERY__MAX_ATTEMPTS="100", **PATIENCE)
    return worker


def report_and_rest(ground: Ground, count: int) -> list[Attempt]:
    """Report this many events, wait for their outcomes, and return the attempts."""
    before = len(ground.api.attempts)
    ground.report(count, environments=10)
    ground.rest()
    return ground.api.attempts[before:]


@scenario(23, "reset at accept, after headers, after the request, after the status line, in the body; "
          "idle connections closed", bound="repeats = T; delivered after a 2xx status line")  # fmt: skip
def test_a_broken_connection_repeats_only_unknowable_ends(ground: Ground) -> None:
    tricks = {
        "cut after the request, taken": Trick(Response(reset=ResetAt.REQUEST), 2),
        "cut after the request, not taken": Trick(Response(reset=ResetAt.REQUEST, processed=False), 2),
        "cut after the status line 202": Trick(Response(reset=ResetAt.STATUS_LINE), 1),
        "cut after the status line 503": Trick(Response(status=503, reset=ResetAt.STATUS_LINE), 2),
        "cut in the body of a 202": Trick(Response(reset=ResetAt.BODY, body=b"x" * 100), 1),
        "cut in the body of a 503": Trick(Response(status=503, reset=ResetAt.BODY, body=b"x" * 100), 2),
    }
    each = 5
    names = list(tricks)
    start_worker(ground)

    ground.api.behave(play(tricks))
    attempts = report_and_rest(ground, 2 * each * len(tricks))
    unknowable = ground.api.unknowable()
    assert attempts_by_trick(attempts, names) == {"": {1}} | {
        name: {trick.attempts} for name, trick in tricks.items()
    }
    ground.bit(unknowable == each, "requests were processed and not answered")
    assert ground.api.repeats() == unknowable
    ground.api.behave(OK)

    for where in (ResetAt.HEADERS, ResetAt.ACCEPT):
        ground.api.close_idle()
        ground.api.reset_next(where, each)
        report_and_rest(ground, 10 * each)
        ground.bit(ground.api.resets[where] == each, f"connections were reset {where}")

    retries = ground.counters().retries
    for by_reset in (False, True):
        closed = ground.api.close_idle(by_reset=by_reset)
        ground.bit(closed, "idle connections were there to close")
        report_and_rest(ground, 10)
    assert ground.counters().retries == retries, "a closed idle connection used up an attempt"

    with ground.load(100):
        for _ in range(10):
            seen = len(ground.api.attempts)
            ground.wait(lambda seen=seen: len(ground.api.attempts) > seen)  # type: ignore[misc]
            ground.api.close_idle()
    ground.rest()
    assert ground.api.repeats() == unknowable, "an unprocessed request was counted as processed, or the reverse"
    ground.check(unknowable=unknowable)
    cuts = ground.api.resets.total()
    ground.observed(f"{cuts} resets, {unknowable} with an unknowable end; {ground.api.repeats()} repeats")


#: Maximum growth of a worker's memory by hostile answers.
MORE_MEGABYTES = 20.0

#: A body that grows a thousandfold when it is unpacked.
BOMB = gzip.compress(bytes(100_000_000), 9)

STRAY = Response(status=400).head()


def hostile(elsewhere: str) -> dict[str, Trick]:
    """Return the tricks; a second answer is always a 400, which would dead-letter the event that it was taken for."""
    gzipped = {"Content-Encoding": "gzip"}
    many = b"X-Y: z\r\n" * 100_000
    tricks = {
        "no HTTP": Trick(replace(GARBAGE, processed=False), 2),
        "two answers": Trick(Response(raw=OK.head() + STRAY), 1),
        "two answers, the first a 503": Trick(Response(status=503, raw=Response(status=503).head() + STRAY), 2),
        "an answer in a body that is too long": Trick(Response(content_length=3, body=b"..." + STRAY), 1),
        "a body that is too short": Trick(Response(content_length=100, body=b"x", closes=True), 1),
        "a gigabyte of success": Trick(Response(filler_bytes=2**30), 1),
        "a gigabyte": Trick(Response(status=503, filler_bytes=2**30), 2),
        "a gzip bomb of success": Trick(Response(headers=gzipped, body=BOMB), 1),
        "a gzip bomb": Trick(Response(status=503, headers=gzipped, body=BOMB), 2),
        "100,000 headers of success": Trick(Response(raw=b"HTTP/1.1 202 Yes\r\n" + many + b"\r\n", closes=True), 1),
        "100,000 headers": Trick(Response(status=503, raw=b"HTTP/1.1 503 No\r\n" + many + b"\r\n", closes=True), 2),
        "interim answers": Trick(replace(interim_flood(100_000), closes=True, processed=False), 2),
    }
    lengths = ("abc", "-1", "9" * 30, "5, 6")
    tricks |= {
        f"a length of {length}": Trick(
            Response(raw=f"HTTP/1.1 202 Yes\r\nContent-Length: {length}\r\n\r\n".encode() + STRAY, closes=True), 1
        )
        for length in lengths
    }
    tricks |= {
        f"redirect {status}": Trick(Response(status=status, headers={"Location": elsewhere}), 1)
        for status in (301, 302, 303, 307, 308)
    }
    return tricks


@scenario(24, "not HTTP, two answers to one request, wrong lengths, 1 GB, a gzip bomb, 100,000 headers, a redirect "
          "elsewhere, 100,000 interim answers",
          bound="memory < +20 MB; no stray answer used; no request elsewhere")  # fmt: skip
def test_hostile_answers_fill_no_memory_and_affect_no_other_event(ground: Ground) -> None:
    with Server(answer(200)) as other:
        tricks = hostile(f"http://localhost:{other.port}/report")
        names = list(tricks)
        worker = start_worker(ground)
        ground.api.behave(
            lambda attempt: OK if attempt.earlier or attempt.number % 4 else Response(status=503, body=b"x" * 2000)
        )
        report_and_rest(ground, 200)  # one-time allocations are done

        before = worker.forget_peak()
        ground.api.behave(play(tricks))
        each = 4
        attempts = report_and_rest(ground, 2 * each * len(tricks))
        ground.api.behave(OK)
        peak = worker.peak_megabytes()

        found = attempts_by_trick(attempts, names)
        assert found == {"": {1}} | {name: {trick.attempts} for name, trick in tricks.items()}
        ground.bit(len(attempts) > 2 * each * len(tricks), "events were retried")
        assert peak - before < MORE_MEGABYTES
        assert (other.connections, other.received) == (0, [])
        last_of = {attempt.connection: attempt.number for attempt in ground.api.attempts}
        doubled = [a for a in attempts if not a.earlier and trick_of(a, names).startswith("two answers")]
        ground.bit(len(doubled) == 2 * each, "requests got two answers")
        assert all(last_of[attempt.connection] == attempt.number for attempt in doubled), "a connection was kept"

        ground.report(1)
        ground.rest()
        ground.bit(ground.api.send_to_idle(STRAY), "idle connections got an answer without a request")
        report_and_rest(ground, 20)

    refused = 5 * each
    counters = ground.counters()
    assert counters.dead_by_reason == {"refused": refused}
    ground.check()
    ground.observed(
        f"{len(tricks)} kinds of hostile answers, {each} of each: {peak - before:+.1f} MB at the most, "
        f"{refused} dead of redirects and none else"
    )


#: A label may have 63 characters: no resolver sends a query for this name.
UNRESOLVABLE = f"https://{'x' * 64}.invalid/report"

#: Events reported during a fault: enough failures in a row to open the circuit breaker.
ENOUGH = 40


def deliveries_held(worker: Worker, because: str, since: int = 0) -> bool:
    """Return whether its log says, from this position, that the circuit breaker is open for this reason."""
    return any(
        f"is {HealthState.UNAVAILABLE}: " in line and because in line for line in worker.log()[since:].splitlines()
    )


@scenario(25, "the API's name cannot be resolved", bound="nothing dead with max_attempts 1; recovers")
def test_an_unresolvable_name_loses_no_event(ground: Ground) -> None:
    once = {"RELAY_DELIVERY__MAX_ATTEMPTS": "1"}
    [lost] = ground.start_workers(1, RELAY_API_URL=UNRESOLVABLE, **once)
    ground.report(ENOUGH)
    ground.wait(lambda: deliveries_held(lost, "dns"), seen=lost.log)
    failures = ENOUGH // 2
    ground.wait(lambda: ground.counters().retries >= failures, seen=ground.counters)  # committed after it is logged
    counters = ground.counters()
    assert (counters.waiting, counters.dead) == (ENOUGH, 0)
    ground.bit(counters.retries >= failures, "deliveries failed without an address")
    assert ground.terminate(lost) == [0]
    assert not ground.api.attempts
    ground.start_workers(1, **once)
    ground.rest(BACK_SECONDS)
    ground.check()
    ground.observed(
        f"{counters.retries} failures with max_attempts 1, 0 dead; {ENOUGH} delivered with the right name"
    )


@scenario(25, "connections refused; certificate expired, for another host, self-signed",
          bound="nothing dead with max_attempts 1; no request, nothing in the clear; recovers")  # fmt: skip
def test_an_api_that_cannot_be_trusted_gets_no_request(ground: Ground, tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir()
    authority = Authority(folder)
    context = authority.server("good")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # a session that is resumed shows no certificate
    authority.server("expired", days=-1)
    authority.server("another", san="DNS:api.example.com")
    authority.self_signed()

    def show(name: str) -> None:
        [certificate] = [*folder.glob(f"{name}.crt"), *folder.glob(f"{name}.pem")][:1]
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))

    with Proxy(ground.api.listen(tls=context)) as link:
        link.cut_reply(b"Bearer", nth=1_000_000)  # only counts
        [worker] = ground.start_workers(
            1,
            RELAY_API_URL=f"https://127.0.0.1:{link.port}/report",
            RELAY_API__CA_FILE=str(authority.file),
            RELAY_DELIVERY__MAX_ATTEMPTS="1",
        )
        faults = {
            "": "connect",
            "expired": "has expired",
            "another": "no alternative certificate",
            "self-signed": "self-signed",
        }
        for certificate, because in faults.items():
            since, told, tried = len(worker.log()), len(ground.api.attempts), link.accepted
            if certificate:
                show(certificate)
            else:
                link.refuse()
            link.reset_all()
            reported = ground.report(ENOUGH)
            ground.wait(lambda: deliveries_held(worker, because, since), seen=worker.log)  # type: ignore[misc]  # noqa: B023
            ground.bit(link.accepted > tried or not certificate, f"the API was tried, and it was {because}")
            assert len(ground.api.attempts) == told, "an API without a trusted certificate got a request"
            assert ground.counters().dead == 0
            show("good")
            if not certificate:
                link.listen()
            mended_at = time.monotonic()
            ground.wait(lambda: set(reported) <= set(ground.api.processed_ids()), BACK_SECONDS, worker.log)  # type: ignore[misc]  # noqa: B023
            back = time.monotonic() - mended_at
            ground.rest()
        assert link.matched == 0, "the token was sent in the clear"
        ports = {attempt.port for attempt in ground.api.attempts}
        assert ports.isdisjoint({ground.api.port})
        retries = ground.counters().retries
        ground.check()
    ground.observed(
        f"{retries} failures with max_attempts 1, 0 dead, {len(faults)} recoveries, the last in {back:.1f} s"
    )
