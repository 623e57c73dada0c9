"""An API that refuses all requests or one, or asks for a pause: health states, their durations and their cost."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from email.utils import formatdate
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from faults.api import OK
from faults.ground import TOKEN, digest, scenario

from relay import DeploymentEvent
from relay.sandbox.response import Response

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from faults.api import Attempt
    from faults.ground import Ground

#: Tolerance of a promised time on a busy machine.
BUSY_SECONDS = 2.0

#: Maximum gap between requests of one wave; the circuit breaker's shortest pause is twice as long.
WAVE_GAP_SECONDS = 0.25

#: The circuit breaker's first pause, and its longest while unauthorized. A pause is measured from before the answer
#: was sent, so only rounding to milliseconds makes it appear shorter.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 2.0
ROUNDING_SECONDS = 0.01

#: Deadline of the state `unauthorized` after a refused token.
HOLD_SECONDS = 1.0

#: The cap on Retry-After in these scenarios.
RETRY_AFTER_MAX = 1.5

#: After a storm: the number of first POSTs, the maximum of them at once, and the minimum of a later POST.
FIRST_POSTS, MOST_AT_FIRST, LEAST_LATER = 24, 16, 24


def openings(ground: Ground) -> int:
    """Return how many times in a row the circuit breaker opened."""
    return int(ground.health("openings") or 0)


def wave_and_probes(refused: Sequence[Attempt]) -> tuple[list[Attempt], list[Attempt]]:
    """Split refused requests into the first wave and the probes after it."""
    gaps = [later.read_at - earlier.read_at for earlier, later in pairwise(refused)]
    first = next((n for n, gap in enumerate(gaps, 1) if gap > WAVE_GAP_SECONDS), len(refused))
    return list(refused[:first]), list(refused[first:])


def check_one_probe_a_pause(
    wave: Sequence[Attempt], probes: Sequence[Attempt], longest_seconds: float = math.inf
) -> None:
    """Check that before each probe there was a whole pause, which doubles, without a request of any worker."""
    for n, (before, probe) in enumerate(pairwise([wave[0], *probes])):
        assert before.ended_at is not None
        pause = min(longest_seconds, FIRST_PAUSE_SECONDS * 2**n)
        waited = probe.read_at - before.ended_at
        assert waited >= pause - ROUNDING_SECONDS, f"probe {n + 1} came after {waited:.3f} s of {pause} s"


def letters(ground: Ground) -> dict[str, dict[str, str]]:
    """Return the dead letters' fields by their events' ids."""
    found = [fields for _, fields in ground.client.xrange(ground.keys.dead)]
    return {
        fields[b"id"].decode(): {name.decode(): value.decode() for name, value in fields.items()} for fields in found
    }


class RotatingToken:
    """A token file, and an API that accepts one token and refuses others with a status.

    Who was refused gets a 500 once more when it comes with the right token: with two attempts in all, an event dies
    of that if it lost one while the token was refused.
    """

    def __init__(self, path: Path, status: int) -> None:
        self.path = path
        self.failed: set[str] = set()
        self._status = status
        self._valid = ""
        self._resumed = False
        self.rotate(f"{TOKEN}-0")
        self.revoke(f"{TOKEN}-0")

    def rotate(self, token: str) -> None:
        """Write the relay's token."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(f"{token}\n")
        fresh.replace(self.path)

    def revoke(self, valid: str) -> None:
        """Accept only this token from now on."""
        self._valid = f"Bearer {valid}"

    def __call__(self, attempt: Attempt) -> Response:
        if attempt.authorization != self._valid:
            return Response(status=self._status)
        if attempt.earlier and self._resumed and attempt.event_id not in self.failed:
            self.failed.add(attempt.event_id)
            return Response(status=500)
        self._resumed = True
        return OK


def check_a_refused_token(ground: Ground, secrets: Path, status: int) -> None:
    token = RotatingToken(secrets / "token", status)
    ground.api.behave(token)
    ground.start_workers(2, RELAY_API_TOKEN_FILE=str(token.path), RELAY_DELIVERY__MAX_ATTEMPTS="2")

    def refused() -> list[Attempt]:
        return [attempt for attempt in list(ground.api.attempts) if attempt.status == status]

    with ground.load(100):
        ground.wait(lambda: len(ground.api.processed_ids()) > 50)
        token.revoke(f"{TOKEN}-1")
        ground.wait(lambda: openings(ground) == 3, seen=ground.counters)
        assert ground.health("circuit") == "unauthorized"
        rotated_at = time.monotonic()
        token.rotate(f"{TOKEN}-1")
        ground.wait(lambda: ground.api.attempts[-1].authorization == f"Bearer {TOKEN}-1")
        ground.wait(lambda: not openings(ground))

    wave, probes = wave_and_probes(refused())
    ground.bit(wave, "the token was refused")
    ground.bit(len(probes) >= 2, "probes were sent one at a time meanwhile")
    held_within = wave[-1].read_at - wave[0].read_at
    assert held_within < HOLD_SECONDS + BUSY_SECONDS
    check_one_probe_a_pause(wave, probes, LONGEST_PAUSE_SECONDS)
    resumed = next(a for a in ground.api.attempts if a.authorization == f"Bearer {TOKEN}-1")
    took = resumed.read_at - rotated_at
    assert took < LONGEST_PAUSE_SECONDS + BUSY_SECONDS
    ground.check()
    ground.bit(
        token.failed,
        "refused events failed once more, which they would not survive if the refusal had used up an attempt",
    )
    assert ground.counters().dead == 0
    ground.observed(
        f"held after {len(wave)} refusals in {held_within:.2f} s; {len(probes)} probes in "
        f"{probes[-1].read_at - wave[0].read_at:.1f} s; resumed {took:.1f} s after the rotation; 0 dead"
    )


@pytest.fixture
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the ground does not search for the token."""
    return tmp_path_factory.mktemp("secrets")


@scenario(17, "401 for all under load, token file rotated", bound="unauthorized within 1 s, 1 probe a pause from all "
          "workers, no attempt used up, resumes within 2 s")  # fmt: skip
def test_an_expired_token_stops_deliveries_and_uses_up_no_attempt(ground: Ground, secrets: Path) -> None:
    check_a_refused_token(ground, secrets, 401)


@scenario(17, "403 for all under load, token file rotated", bound="unauthorized within 1 s, 1 probe a pause from all "
          "workers, no attempt used up, resumes within 2 s")  # fmt: skip
def test_a_forbidden_token_stops_deliveries_and_uses_up_no_attempt(ground: Ground, secrets: Path) -> None:
    check_a_refused_token(ground, secrets, 403)


@scenario(
    17, "403 for one event while others pass", bound="only that event is dead, `forbidden`; the others are delivered"
)
def test_a_forbidden_event_is_the_only_dead_letter(ground: Ground) -> None:
    alone = [
        DeploymentEvent.of(f"ghcr.io/acme/alone@{digest(f'alone-{n}')}", environment="env-0", id=f"alone-{n}")
        for n in range(2)
    ]
    ground.api.behave(lambda attempt: Response(status=403) if attempt.event_id == "alone-0" else OK)
    ground.start_workers(2)
    with ground.load(100):
        ground.wait(lambda: len(ground.api.processed_ids()) > 50)
        since = time.monotonic()
        ground.report_events(alone)
        ground.wait(lambda: "alone-0" in letters(ground), seen=ground.counters)
        ground.wait(lambda: "alone-1" in ground.api.processed_ids(), seen=ground.counters)
        until = time.monotonic()
    ground.bit(letters(ground)["alone-0"]["reason"] == "forbidden", "it was found to be forbidden")
    tries = [attempt for attempt in ground.api.attempts if attempt.event_id == "alone-0"]
    passed = [a.number for a in ground.api.attempts if a.processed]
    between = sum(any(one.number < n < other.number for n in passed) for one, other in pairwise(tries))
    assert between >= 2, "it is dead though no other event was delivered between its attempts"
    silence = ground.api.longest_silence(since, until)
    assert silence < FIRST_PAUSE_SECONDS + BUSY_SECONDS
    ground.check()
    assert ground.counters().dead == 1
    ground.observed(
        f"dead after {len(tries)} POSTs in {tries[-1].read_at - tries[0].read_at:.2f} s, others never silent for "
        f"more than {silence:.2f} s"
    )


@scenario(18, "400, 413, 422 for 5 %; 404, 405, 410 at first for some", bound="dead after exactly 1 attempt; slow "
          "retry; the rest delivered")  # fmt: skip
def test_refused_events_are_dead_at_once_and_missing_ones_are_retried_slowly(ground: Ground) -> None:
    refusals, absences = (400, 413, 422), (404, 405, 410)
    refused = {f"event-{n}": refusals[n // 20 % 3] for n in range(0, 400, 20)}
    absent = {f"event-{n}": absences[n // 50 % 3] for n in range(7, 400, 50)}
    stumbling = {f"event-{n}" for n in range(11, 400, 50)}

    def respond(attempt: Attempt) -> Response:
        if attempt.event_id in refused:
            return Response(status=refused[attempt.event_id], body=b"no")
        if attempt.earlier:
            return OK
        return Response(status=absent.get(attempt.event_id, 500 if attempt.event_id in stumbling else 202))

    ground.api.behave(respond)
    ground.start_workers(1, RELAY_DELIVERY__BACKOFF_MAX="5s", RELAY_DELIVERY__MAX_ATTEMPTS="2")
    ground.report(400, environments=5)
    ground.rest()

    def pauses(ids: Sequence[str]) -> list[float]:
        first = {a.event_id: a.ended_at for a in ground.api.attempts if not a.earlier}
        return [a.read_at - (first[a.event_id] or 0) for a in ground.api.attempts if a.earlier and a.event_id in ids]

    dead = letters(ground)
    ground.bit(dead, "the API refused some")
    assert {name: int(letter["status"]) for name, letter in dead.items()} == refused
    assert {(letter["reason"], letter["attempts"]) for letter in dead.values()} == {("refused", "1")}
    assert sum(attempt.event_id in refused for attempt in ground.api.attempts) == len(refused)
    slow, fast = pauses([*absent]), pauses([*stumbling])
    ground.bit(len(slow) == len(absent), "each missing one was retried")
    # Both are random from 0: up to 5 s, and up to 50 ms. All of eight are short with a probability of 1 in 10^8.
    assert FIRST_PAUSE_SECONDS < max(slow) < 5 + BUSY_SECONDS
    assert max(fast) < 0.05 + BUSY_SECONDS
    ground.check()
    ground.observed(
        f"{len(dead)} dead after 1 attempt each; 404/405/410 tried again after {min(slow):.1f} to {max(slow):.1f} s, "
        f"500 after {max(fast):.2f} s at most"
    )


@scenario(18, "404 for all, then the URL is corrected", bound="misconfigured, 1 probe a pause, none dead")
def test_a_wrong_url_is_misconfigured_and_makes_no_dead_letter(ground: Ground) -> None:
    wrong = ground.api.listen()
    # They are answered once all were sent, so that each has used up one of its two attempts by then.
    ground.api.behave(lambda attempt: Response(status=404, delay_seconds=0.3) if attempt.port == wrong else OK)
    two = {"RELAY_DELIVERY__MAX_ATTEMPTS": "2"}
    [misled] = ground.start_workers(1, RELAY_API_URL=f"http://127.0.0.1:{wrong}/reprot", **two)
    ground.report(30)
    ground.wait(lambda: openings(ground) == 3, seen=ground.counters)
    assert ground.health("circuit") == "misconfigured"
    assert ground.terminate(misled) == [0]
    wave, probes = wave_and_probes(ground.api.attempts)
    ground.bit(len(probes) >= 2, "it was probed with events that had failed before")
    check_one_probe_a_pause(wave, probes)
    ground.start_workers(1, **two)
    ground.rest()
    assert ground.counters().dead == 0
    ground.check()
    ground.observed(
        f"held after {len(wave)}, {len(probes)} probes, 0 dead, all {ground.counters().delivered} arrived"
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """The Retry-After of an answer, and its length in seconds from then; 0 if it asks for no pause."""

    headers: dict[str, str]
    seconds: float


def _date_alone() -> Asked:
    until = math.floor(time.time() + 0.5) + 1  # dates have whole seconds: between 0.5 and 1.5 from now
    return Asked({"Retry-After": formatdate(until, usegmt=True)}, until - time.time())


def _date_by_another_clock() -> Asked:
    now = math.floor(time.time()) - 3600
    return Asked({"Date": formatdate(now, usegmt=True), "Retry-After": formatdate(now + 1, usegmt=True)}, 1)


FORMS: dict[str, Callable[[], Asked]] = {
    "seconds": lambda: Asked({"Retry-After": "1"}, 1),
    "date": _date_alone,
    "date and Date": _date_by_another_clock,
    "twice": lambda: Asked({"Retry-After": "1", "retry-after": "0"}, 1),
    "absurd": lambda: Asked({"Retry-After": "9" * 30}, RETRY_AFTER_MAX),
    "past": lambda: Asked({"Retry-After": formatdate(time.time() - 60, usegmt=True)}, 0),
    "negative": lambda: Asked({"Retry-After": "-5"}, 0),
    "words": lambda: Asked({"Retry-After": "in a while"}, 0),
    "none": lambda: Asked({}, 0),
}


def silence_after(ground: Ground, form: Callable[[], Asked]) -> tuple[float, float]:
    """Answer one request with a 429, with work for all workers behind it; return the seconds asked for and kept."""
    answered: list[tuple[Attempt, Asked]] = []

    def once(attempt: Attempt) -> Response:
        if answered:
            return OK
        answered.append((attempt, form()))
        return Response(status=429, headers=answered[0][1].headers)

    before = ground.health("until")
    ground.api.behave(once)
    [first] = ground.report(1)
    ground.wait(lambda: bool(answered) and answered[0][0].ended_at is not None)
    refused, asked = answered[0]
    if asked.seconds:
        ground.wait(lambda: ground.health("until") != before)  # from here on no worker may send
    more = ground.report(40, environments=8)
    ground.wait(lambda: {first, *more} <= ground.api.processed_ids().keys(), seen=ground.counters)
    if not asked.seconds:
        assert ground.health("until") == before, f"throttled though {asked.headers} asks for no pause"
    following = min(a.read_at for a in ground.api.attempts if a.number > refused.number)
    assert refused.ended_at is not None
    return asked.seconds, following - refused.read_at


@scenario(19, "429 with Retry-After in seconds, as a date with and without Date, twice, absurd, past, negative, "
          "in words, without; and under load", bound="no request of any worker before the time; capped; no attempt "
          "used up")  # fmt: skip
def test_no_worker_sends_before_the_end_of_retry_after(ground: Ground) -> None:
    one = {"RELAY_DELIVERY__RETRY_AFTER_MAX": f"{RETRY_AFTER_MAX}s", "RELAY_DELIVERY__MAX_ATTEMPTS": "1"}
    ground.start_workers(2, **one)
    silences = {}
    for name, form in FORMS.items():
        asked, silences[name] = silence_after(ground, form)
        assert asked - ROUNDING_SECONDS <= silences[name] < asked + BUSY_SECONDS, f"{name}: {asked} s were asked for"

    ground.api.behave(OK)
    with ground.load(200, environments=10):
        for worker in ground.running:
            ground.wait(lambda worker=worker: ground.has_delivered(worker))  # type: ignore[misc]
        number = len(ground.api.attempts)
        ground.api.behave(Response(status=429, headers={"Retry-After": "60"}))
        ground.wait(lambda: any(a.status == 429 for a in ground.api.attempts[number:]))
        first = next(a for a in ground.api.attempts[number:] if a.status == 429)
        ground.wait(lambda: time.monotonic() > first.read_at + HOLD_SECONDS)
        ground.api.behave(OK)
        ground.wait(lambda: ground.api.attempts[-1].read_at > first.read_at + RETRY_AFTER_MAX)
    wave = [a.read_at for a in ground.api.attempts if a.status == 429 and a.number >= first.number]
    ground.bit(len(ground.api.attempts) > len(wave) and wave, "the API asked for a pause")
    assert wave[-1] - first.read_at < HOLD_SECONDS
    assert ground.api.received(wave[-1] + ROUNDING_SECONDS, first.read_at + RETRY_AFTER_MAX) == 0
    ground.check()
    assert ground.counters().dead == 0
    ground.observed(
        f"{', '.join(f'{name} {seconds:.2f} s' for name, seconds in silences.items())}; under load {len(wave)} "
        f"requests in {(wave[-1] - first.read_at) * 1000:.0f} ms and then none for {RETRY_AFTER_MAX} s"
    )


def concurrency(attempts: Sequence[Attempt]) -> list[int]:
    """Return how many were in flight when each began, itself included."""
    ends = sorted(a.ended_at for a in attempts if a.ended_at is not None)
    over, levels = 0, []
    for n, attempt in enumerate(sorted(attempts, key=lambda a: a.read_at), 1):
        while over < len(ends) and ends[over] <= attempt.read_at:
            over += 1
        levels.append(n - over)
    return levels


@scenario(
    20, "503 storm with 10,000 waiting", bound="1 probe a pause from all workers; a slow start after; none dead"
)
def test_a_storm_gets_few_probes_and_a_slow_start_after(ground: Ground) -> None:
    ground.api.behave(Response(status=503, delay_seconds=0.1))
    ground.start_workers(2)
    ground.report(10_000, environments=4)
    ground.wait(lambda: openings(ground) == 4, seen=ground.counters)  # the next probe comes 4 s later
    wave, probes = wave_and_probes(list(ground.api.attempts))
    ground.bit(len(wave) >= 20 and len(probes) == 3, "the circuit breaker opened, and probes were sent")
    ground.bit(ground.counters().waiting == 10_000, "all of them waited")
    check_one_probe_a_pause(wave, probes)
    ground.api.behave(Response(delay_seconds=0.02))
    ground.wait(lambda: ground.api.in_flight > LEAST_LATER, seen=ground.counters)
    ground.api.behave(OK)
    ground.rest(60)
    after = [attempt for attempt in ground.api.attempts if attempt.status == 202]
    levels = concurrency(after[:2000])
    assert levels[0] == 1
    assert max(levels[:FIRST_POSTS]) <= MOST_AT_FIRST, levels[:FIRST_POSTS]
    ground.check()
    assert ground.counters().dead == 0
    ground.observed(
        f"{len(wave)} requests until it was held, {len(probes)} probes in {after[0].read_at - wave[0].read_at:.1f} s;"
        f" then at most {max(levels[:FIRST_POSTS])} at once of the first {FIRST_POSTS}, {max(levels)} later; 0 dead"
    )
