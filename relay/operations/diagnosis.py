"""What is wrong with the relay and what to do about it, decided from one status reading. Pure.

The most likely root cause comes first, so that an operator can act on the first line alone.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from relay.operations.finding import Finding, Severity, fault, warning
from relay.operations.status import duration, next_probe
from relay.queue.health import HealthState
from relay.text import some_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.queue.status import Status

#: Failed attempts in a row from which they are reported; the circuit breaker opens at 20.
MIN_FAILURES = 3

#: Failed attempts from which an event is at fault itself, if others are delivered.
MIN_ATTEMPTS_OF_ONE = 3

#: A throttle still explains a delay for this long after its end.
RECENT_THROTTLE_SECONDS = 60.0

#: Blocked events that one retry explains: the later events of its instance.
BLOCKED_BY_A_RETRY = 10

#: Age of a waiting event from which it is reported if nothing else explains the delay.
LATE_SECONDS = 60.0

#: Part of `queue.max_backlog` from which the backlog is reported.
NEARLY_FULL = 0.8


class Cause(StrEnum):
    """Names of the findings about the queue and its destination."""

    READ_ONLY = "read_only"
    NO_WORKERS = "no_workers"
    UNAUTHORIZED = "unauthorized"
    MISCONFIGURED = "misconfigured"
    UNAVAILABLE = "unavailable"
    FAILING = "failing"
    THROTTLED = "throttled"
    PAUSED = "paused"
    REDIS_FULL = "redis_full"
    QUEUE_FULL = "queue_full"
    WORKER_CRASHES = "worker_crashes"
    POISON = "poison"
    INBOX_LATE = "inbox_late"
    BEHIND = "behind"
    CONTESTED = "contested"
    CLOCK_AHEAD = "clock_ahead"
    DEAD_LETTERS = "dead_letters"
    UNACCOUNTED = "unaccounted"


_ORDER = (Severity.FAULT, Severity.WARNING, Severity.NOTE)


def diagnose(status: Status) -> list[Finding]:
    """Return the findings by severity; among equals, a cause comes before its consequences."""
    return sorted(_findings(status), key=lambda finding: _ORDER.index(finding.severity))


def _findings(status: Status) -> Iterator[Finding]:
    """Yield causes before consequences: a missing worker lets the queue run full, not the reverse."""
    explained = False
    for find in (_redis_role, _workers, _destination, _pauses, _capacity, _crashes):
        for finding in find(status):
            explained = explained or finding.severity is Severity.FAULT
            yield finding
    if not explained:
        yield from _delays(status)
    for find in (_poison, _contested, _clocks, _dead_letters):
        yield from find(status)
    if lost := status.counters.unaccounted:
        yield fault(
            Cause.UNACCOUNTED,
            f"{_events(lost)} unaccounted for",
            "report this defect, with the output of `relay status --json`",
        )


def _redis_role(status: Status) -> Iterator[Finding]:
    if status.write_error:
        yield Finding(
            check=Cause.READ_ONLY,
            severity=Severity.WARNING if status.workers else Severity.FAULT,  # live workers write to the primary
            what=f"this Redis takes no writes, so nothing is reported or delivered through it ({status.write_error})",
            do="point RELAY_REDIS_URL at the primary; after a failover check that a replica was promoted",
        )


def _workers(status: Status) -> Iterator[Finding]:
    if not status.workers:
        yield Finding(
            check=Cause.NO_WORKERS,
            severity=Severity.FAULT if status.counters.waiting else Severity.WARNING,
            what=f"no worker is alive, and {_events(status.counters.waiting)} waiting",
            do="start one: `relay worker`",
        )


def _destination(status: Status) -> Iterator[Finding]:
    health, now, waiting = status.health, status.now, status.counters.waiting
    state = health.state(now)
    probe = next_probe(health, now)
    match state:
        case HealthState.UNAUTHORIZED:
            yield fault(
                Cause.UNAUTHORIZED,
                "the destination refuses the token: it expired or is wrong, and deliveries wait",
                f"put a valid one in RELAY_API_TOKEN_FILE (or RELAY_API_TOKEN, and restart the workers); {probe}",
            )
        case HealthState.MISCONFIGURED:
            yield fault(
                Cause.MISCONFIGURED,
                "the destination answers every event that there is no such URL, and deliveries wait",
                f"fix RELAY_API_URL and restart the workers; {probe}",
            )
        case HealthState.UNAVAILABLE:
            yield fault(
                Cause.UNAVAILABLE,
                f"the destination is unavailable: {health.failures} attempts in a row failed, and deliveries wait",
                f"check the destination and the network to it; nothing is lost, and {probe}",
            )
    if not waiting:
        return
    ends_at = health.throttled_until if health.openings else health.until
    is_throttled = (
        state is HealthState.THROTTLED
        if health.openings
        else HealthState.THROTTLED in {health.reason, state} and ends_at > now - RECENT_THROTTLE_SECONDS * 1000
    )
    if is_throttled:
        rest = f", for {duration(ends_at - now)} more" if ends_at > now else ""
        yield fault(
            Cause.THROTTLED,
            f"the destination limits the rate (429 or Retry-After): deliveries wait as it asks{rest}",
            f"wait, or `relay resume --destination {status.destination}` if it asked by mistake; {probe}"
            if health.openings
            else "wait, or have the limit raised; an api.rate_limit below it avoids the refusals",
        )
    elif state is HealthState.HEALTHY and health.failures >= MIN_FAILURES:
        yield fault(
            Cause.FAILING,
            f"the destination failed the last {health.failures} attempts{_only_retrying(status)}",
            "check the destination and the network to it; each event is retried automatically",
        )


def _pauses(status: Status) -> Iterator[Finding]:
    paused = sorted(status.paused, key=lambda each: -each.waiting)
    if not paused:
        return
    waiting = sum(each.waiting for each in paused)
    names = [each.environment for each in paused]
    is_most = 0 < status.counters.waiting <= 2 * waiting
    yield Finding(
        check=Cause.PAUSED,
        severity=Severity.FAULT if is_most else Severity.WARNING if waiting else Severity.NOTE,
        what=f"{some_of(names)} {'is' if len(names) == 1 else 'are'} paused by an operator, "
        f"and {_events(waiting)} waiting there",
        do=f"`relay resume {names[0]}` when it is time",
    )


def _capacity(status: Status) -> Iterator[Finding]:
    used = status.server.memory_used_ratio
    if used is not None and used >= status.memory_watermark:
        yield fault(
            Cause.REDIS_FULL,
            f"Redis is full: {used:.0%} of its maxmemory is used, and producers are refused",
            "raise maxmemory (`redis-cli config set maxmemory …`), or remove other data from that Redis",
        )
    filled = status.counters.waiting / status.max_backlog
    if filled >= NEARLY_FULL:
        is_full = filled >= 1
        yield Finding(
            check=Cause.QUEUE_FULL,
            severity=Severity.FAULT if is_full else Severity.WARNING,
            what=f"the queue is {'full' if is_full else f'{filled:.0%} full'}: "
            f"{_events(status.counters.waiting)} waiting{', and producers are refused' if is_full else ''}",
            do="check what delays deliveries, or raise queue.max_backlog",
        )


def _crashes(status: Status) -> Iterator[Finding]:
    places = ["the inbox"] if status.inbox_delivery_count else []
    places += [each.environment for each in status.environments if each.delivery_count]
    if places:
        yield fault(
            Cause.WORKER_CRASHES,
            f"workers crash while they process an event of {some_of(places)}",
            "it becomes a dead letter (worker_crash) automatically, and the rest continues; check the workers' logs",
        )


def _delays(status: Status) -> Iterator[Finding]:
    """Name the events that wait too long without a known reason."""
    age = _age(status.inbox_oldest, status.now)
    if age > LATE_SECONDS * 1000 and status.is_intake_running:
        yield warning(
            Cause.INBOX_LATE,
            f"events wait in the inbox for {duration(age)}, though intake is running",
            "wait until it has caught up; if that is too slow, check how busy Redis and the workers' machines are",
        )
    elif age > LATE_SECONDS * 1000:
        yield fault(
            Cause.INBOX_LATE,
            f"events wait in the inbox for {duration(age)}: intake is not running",
            "check the workers' logs, and `relay doctor`",
        )
    moving = [
        each
        for each in status.environments
        if each.paused_since is None and each.waiting > BLOCKED_BY_A_RETRY * each.retrying
    ]
    behind = max(moving, key=lambda each: _age(each.oldest, status.now), default=None)
    if behind is not None and _age(behind.oldest, status.now) > LATE_SECONDS * 1000:
        yield warning(
            Cause.BEHIND,
            f"{behind.environment} is {duration(_age(behind.oldest, status.now))} behind, and the destination is "
            "healthy",
            "the destination is slow, api.rate_limit is low, or there are too few workers: start more",
        )


def _poison(status: Status) -> Iterator[Finding]:
    """Name an event that keeps failing while the destination accepts others."""
    stuck = [each for each in status.retrying if each.attempts >= MIN_ATTEMPTS_OF_ONE]
    if stuck and status.health.failures < MIN_FAILURES and not status.health.openings:  # its own failures count too
        worst = max(stuck, key=lambda each: each.attempts)
        yield warning(
            Cause.POISON,
            f"one event is at fault: {worst.instance.strip()} in {worst.environment} failed {worst.attempts} times "
            "while others are delivered",
            "it becomes a dead letter when its attempts are used up; only its own instance is blocked",
        )


def _contested(status: Status) -> Iterator[Finding]:
    """Name instances that two sources change in turns: each undoes what the other reported."""
    if not status.contested:
        return
    worst, others = status.contested[0], len(status.contested) - 1
    one, other = (source or "reports without a source" for source in worst.sources)
    sources = f"{one} and {other}" if one != other else f"{one}, perhaps of two clusters"
    more = f", and {others:,} more like it" if others else ""
    times = "once" if worst.returns == 1 else f"{worst.returns:,} times in a row"
    yield warning(
        Cause.CONTESTED,
        f"{worst.instance.strip()} in {worst.environment} is changed in turns by {sources} and was changed back "
        f"{times}, the last {duration(status.now - worst.at)} ago{more}",
        "give each cluster a name of its own (CLUSTER_NAME), or let only one of them report it",
    )


def _clocks(status: Status) -> Iterator[Finding]:
    """Name the source whose clock is ahead."""
    if (ahead := status.clock_ahead) is None:
        return
    source = f"source {ahead.source}" if ahead.source else "a source without a name"
    yield warning(
        Cause.CLOCK_AHEAD,
        f"the clock of {source} is {duration(ahead.ahead_ms)} ahead of Redis's, as a report for {ahead.environment} "
        f"in the last 24 h shows; for {status.clocks_ahead:,} such reports in all, the time of arrival counts",
        "correct that clock, or the time that is reported; delivery.max_clock_skew is the bound",
    )


def _dead_letters(status: Status) -> Iterator[Finding]:
    number, letter = status.counters.dead_waiting, status.newest_dead
    if not number or letter is None:
        return
    detail = letter.cause.get("detail", "")
    where = f" in {letter.environment}" if letter.environment else ""
    age = duration(status.now - letter.dead_since)
    what = (
        f"{number:,} dead letter{' waits' if number == 1 else 's wait'} for a decision; the newest, "
        f"{age} old, is {letter.image or letter.event_id or 'unreadable'}{where}: "
        f"{letter.reason}{f', {detail}' if detail else ''}"
    )
    yield warning(
        Cause.DEAD_LETTERS,
        what.encode(errors="replace").decode(),  # the event may contain half a surrogate pair
        f"`relay dead show {letter.letter_id}`, then fix the cause and redrive, or drop",
    )


def _only_retrying(status: Status) -> str:
    """Return which event failed, if a single one waits for its retry."""
    if len(status.retrying) != 1 or sum(each.retrying for each in status.environments) > 1:
        return ""
    (only,) = status.retrying
    return f", all of one event perhaps: {only.instance.strip()} in {only.environment}"


def _age(since: int | None, now: int) -> int:
    return 0 if since is None else now - since


def _events(number: int) -> str:
    return f"{number:,} event{' is' if number == 1 else 's are'}" if number else "nothing is"
