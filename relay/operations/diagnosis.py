"""What is wrong, and what to do about it: the likeliest cause first, in words for whoever is called at night."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from relay.queue.health import Health, HealthState
from relay.settings import DEFAULT_DESTINATION
from relay.text import some_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.queue.overview import Overview

#: Attempts in a row that failed from which it is worth a word; the circuit opens at 20.
FAILURES = 3

#: An event that was tried so often while others passed is at fault itself.
ANSWERS = 3

#: A pause that the API asked for is still what holds things up so long after its end.
LATELY_SECONDS = 60.0

#: Events that wait because one is tried again: those of its instance, as many as it may have.
EXPLAINED_BY_A_RETRY = 10

#: An event that waits this long without a reason that is known waits too long.
LONG_SECONDS = 60.0

#: The part of `queue.max_backlog` from which it is worth a word.
NEARLY_FULL = 0.8


class Cause(StrEnum):
    """What it is."""

    READ_ONLY = "read_only"
    NO_WORKERS = "no_workers"
    UNAUTHORIZED = "unauthorized"
    MISCONFIGURED = "misconfigured"
    API_DOWN = "api_down"
    API_FAILING = "api_failing"
    THROTTLED = "throttled"
    PAUSED = "paused"
    REDIS_FULL = "redis_full"
    QUEUE_FULL = "queue_full"
    WORKERS_DIE = "workers_die"
    POISON = "poison"
    INBOX_WAITS = "inbox_waits"
    BEHIND = "behind"
    CONTESTED = "contested"
    CLOCK_AHEAD = "clock_ahead"
    DEAD_LETTERS = "dead_letters"
    UNACCOUNTED = "unaccounted"


class Level(StrEnum):
    """How bad it is: nothing arrives, something does not, or it is as well to know."""

    BAD = "bad"
    WARN = "warn"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, in a sentence, and what to do in another."""

    cause: Cause
    level: Level
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.what}; {self.do}"


def diagnose(seen: Overview) -> list[Finding]:
    """Return what is wrong, the worst first, and of what is as bad, what brings the rest about."""
    order = list(Level)
    return sorted(_findings(seen), key=lambda finding: order.index(finding.level))


def _findings(seen: Overview) -> Iterator[Finding]:
    """Look from the cause to the consequence: workers that are away let the queue run full, and not the reverse."""
    explained = False
    for find in (_role, _workers, _destination, _pauses, _room, _crashes):
        for finding in find(seen):
            explained = explained or finding.level is Level.BAD
            yield finding
    if not explained:
        yield from _slowness(seen)
    yield from _poison(seen)
    yield from _contested(seen)
    yield from _clocks(seen)
    yield from _dead_letters(seen)
    if lost := seen.counters.unaccounted:
        yield Finding(
            cause=Cause.UNACCOUNTED,
            level=Level.BAD,
            what=f"{_events(lost)} unaccounted for",
            do="report this defect, with the output of `relay status --json`",
        )


def _role(seen: Overview) -> Iterator[Finding]:
    if seen.refusal:
        yield Finding(
            cause=Cause.READ_ONLY,
            level=Level.WARN if seen.workers else Level.BAD,  # workers that live write to the primary
            what=f"this Redis takes no writes, so nothing is reported or delivered through it ({seen.refusal})",
            do="let RELAY_REDIS_URL lead to the primary; after a failover see whether a replica was promoted",
        )


def _workers(seen: Overview) -> Iterator[Finding]:
    if not seen.workers:
        yield Finding(
            cause=Cause.NO_WORKERS,
            level=Level.BAD if seen.counters.waiting else Level.WARN,
            what=f"no worker is alive, and {_events(seen.counters.waiting)} waiting",
            do="start one: `relay worker`",
        )


def _destination(seen: Overview) -> Iterator[Finding]:
    health = seen.health
    reason = health.state(seen.now)
    tried = _again(health, seen.now)
    match reason:
        case "unauthorized":
            yield Finding(
                cause=Cause.UNAUTHORIZED,
                level=Level.BAD,
                what="the API refuses the token: it expired or is wrong, and all deliveries are held",
                do=f"put a valid one in RELAY_API_TOKEN_FILE (or RELAY_API_TOKEN, and restart the workers); {tried}",
            )
        case "misconfigured":
            yield Finding(
                cause=Cause.MISCONFIGURED,
                level=Level.BAD,
                what="the API answers every event that there is no such URL, and all deliveries are held",
                do=f"mend RELAY_API_URL and restart the workers; {tried}",
            )
        case "unavailable":
            yield Finding(
                cause=Cause.API_DOWN,
                level=Level.BAD,
                what=f"the API is down: {health.failures} attempts in a row failed, and all deliveries are held",
                do=f"see to the API or the network to it; nothing is lost, and {tried}",
            )
    limited = "throttled" in {health.reason, reason} and health.until > seen.now - LATELY_SECONDS * 1000
    if reason == "throttled" and health.openings and seen.counters.waiting:
        left = health.throttled_until - seen.now
        yield Finding(
            cause=Cause.THROTTLED,
            level=Level.BAD,
            what="the API limits the rate (429 or Retry-After): deliveries are held as it asks"
            + (f", for {duration(left)} more" if left > 0 else ""),
            do=f"wait, or `relay resume --destination {DEFAULT_DESTINATION}` if it asked by mistake; {tried}",
        )
    elif limited and not health.openings and seen.counters.waiting:
        for_more = f", for {duration(health.until - seen.now)} more" if health.until > seen.now else ""
        yield Finding(
            cause=Cause.THROTTLED,
            level=Level.BAD,
            what=f"the API limits the rate (429 or Retry-After): deliveries are held as it asks{for_more}",
            do="wait, or have the limit raised; api.rate_limit below it spares the refusals",
        )
    elif reason is HealthState.HEALTHY and health.failures >= FAILURES and seen.counters.waiting:
        yield Finding(
            cause=Cause.API_FAILING,
            level=Level.BAD,
            what=f"the API failed the last {health.failures} attempts{_of_what(seen)}",
            do="see to the API or the network to it; each is tried again by itself",
        )


def _pauses(seen: Overview) -> Iterator[Finding]:
    paused = sorted(seen.paused, key=lambda each: -each.waiting)
    if not paused:
        return
    waiting = sum(each.waiting for each in paused)
    names = [each.environment for each in paused]
    yield Finding(
        cause=Cause.PAUSED,
        level=Level.BAD if 0 < seen.counters.waiting <= 2 * waiting else Level.WARN if waiting else Level.NOTE,
        what=f"{some_of(names)} {'is' if len(names) == 1 else 'are'} paused by an operator, "
        f"and {_events(waiting)} waiting there",
        do=f"`relay resume {names[0]}` when it is time",
    )


def _room(seen: Overview) -> Iterator[Finding]:
    if seen.memory.most and seen.memory.part >= seen.memory_watermark:
        yield Finding(
            cause=Cause.REDIS_FULL,
            level=Level.BAD,
            what=f"Redis is full: {seen.memory.part:.0%} of its maxmemory is used, and producers are refused",
            do="raise maxmemory (`redis-cli config set maxmemory …`), or remove what else lies in that Redis",
        )
    part = seen.counters.waiting / seen.max_backlog
    if part >= NEARLY_FULL:
        full = part >= 1
        yield Finding(
            cause=Cause.QUEUE_FULL,
            level=Level.BAD if full else Level.WARN,
            what=f"the queue is {'full' if full else f'{part:.0%} full'}: {_events(seen.counters.waiting)} waiting"
            + (", and producers are refused" if full else ""),
            do="see what holds up deliveries, or raise queue.max_backlog",
        )


def _crashes(seen: Overview) -> Iterator[Finding]:
    places = ["the inbox"] if seen.inbox_deaths else []
    places += [each.environment for each in seen.environments if each.deaths]
    if places:
        yield Finding(
            cause=Cause.WORKERS_DIE,
            level=Level.BAD,
            what=f"workers die while they handle an event of {some_of(places)}",
            do="it becomes a dead letter (worker_crash) by itself, and the rest goes on; see the workers' logs",
        )


def _slowness(seen: Overview) -> Iterator[Finding]:
    """Name what waits too long without a reason that is known."""
    age = _age(seen.inbox_oldest, seen.now)
    if age > LONG_SECONDS * 1000 and seen.intake_at_work:
        yield Finding(
            cause=Cause.INBOX_WAITS,
            level=Level.WARN,
            what=f"events wait in the inbox for {duration(age)}, though a worker is taking them in",
            do="wait until it has caught up; if that is too slow, see how busy Redis and the workers' machines are",
        )
    elif age > LONG_SECONDS * 1000:
        yield Finding(
            cause=Cause.INBOX_WAITS,
            level=Level.BAD,
            what=f"events wait in the inbox for {duration(age)}: no worker takes them in",
            do="see the workers' logs, and `relay doctor`",
        )
    moving = [
        each
        for each in seen.environments
        if each.paused_since is None and each.waiting > EXPLAINED_BY_A_RETRY * each.retrying
    ]
    behind = max(moving, key=lambda each: _age(each.oldest, seen.now), default=None)
    if behind is not None and _age(behind.oldest, seen.now) > LONG_SECONDS * 1000:
        yield Finding(
            cause=Cause.BEHIND,
            level=Level.WARN,
            what=f"{behind.environment} is {duration(_age(behind.oldest, seen.now))} behind, and nothing is held",
            do="the API is slow, api.rate_limit is low, or there are too few workers: start more",
        )


def _poison(seen: Overview) -> Iterator[Finding]:
    """Name what is tried again and again while the API takes others."""
    stuck = [each for each in seen.retrying if each.answers >= ANSWERS]
    if seen.health.failures < FAILURES and not seen.health.openings and stuck:  # its own failures are among them
        worst = max(stuck, key=lambda each: each.answers)
        yield Finding(
            cause=Cause.POISON,
            level=Level.WARN,
            what=f"one event is at fault: {worst.instance.strip()} in {worst.environment} failed "
            f"{worst.answers} times while others are delivered",
            do="it becomes a dead letter when its attempts are used up; only its own instance waits for it",
        )


def _contested(seen: Overview) -> Iterator[Finding]:
    """Name instances that two sources change in turns: each undoes what the other reported."""
    if not seen.contested:
        return
    worst, others = seen.contested[0], len(seen.contested) - 1
    one, other = (source or "reports without a source" for source in worst.sources)
    by_whom = f"{one} and {other}" if one != other else f"{one}, perhaps of two clusters"
    more = f", and {others:,} more like it" if others else ""
    times = "once" if worst.returns == 1 else f"{worst.returns:,} times in a row"
    yield Finding(
        cause=Cause.CONTESTED,
        level=Level.WARN,
        what=f"{worst.instance.strip()} in {worst.environment} is changed in turns by {by_whom} and was changed back "
        f"{times}, the last {duration(seen.now - worst.at)} ago{more}",
        do="give each cluster a name of its own (CLUSTER_NAME), or let only one of them report it",
    )


def _clocks(seen: Overview) -> Iterator[Finding]:
    """Name the source whose clock is ahead."""
    if (ahead := seen.clock_ahead) is None:
        return
    source = f"source {ahead.source}" if ahead.source else "a source without a name"
    yield Finding(
        cause=Cause.CLOCK_AHEAD,
        level=Level.WARN,
        what=f"the clock of {source} is {duration(ahead.ahead_ms)} ahead of Redis's, as a report for "
        f"{ahead.environment} in the last 24 h shows; {seen.clocks_ahead:,} such in all counted by their arrival",
        do="correct that clock, or the time that is reported; delivery.max_clock_skew is the bound",
    )


def _dead_letters(seen: Overview) -> Iterator[Finding]:
    number, letter = seen.counters.dead_waiting, seen.newest_dead
    if not number or letter is None:
        return
    detail = letter.death.get("detail", "")
    where = f" in {letter.environment}" if letter.environment else ""
    what = (
        f"{number:,} dead letter{' waits' if number == 1 else 's wait'} for a decision; the newest, "
        f"{duration(seen.now - letter.died)} old, is {letter.image or letter.event_id or 'unreadable'}{where}: "
        f"{letter.reason}{f', {detail}' if detail else ''}"
    )
    yield Finding(
        cause=Cause.DEAD_LETTERS,
        level=Level.WARN,
        what=what.encode(errors="replace").decode(),  # an event that died may name half a surrogate pair
        do=f"`relay dead show {letter.letter_id}`, then mend and redrive, or drop",
    )


def describe(health: Health, now: int) -> str:
    """Say in a sentence how the destination is; `now` in Redis milliseconds."""
    window = f"up to {health.window} POSTs at once" if health.window else "no window yet"
    failures = f"{health.failures} failed in a row" if health.failures else "the last attempt succeeded"
    if not health.successes and not health.failures:
        failures = "nothing was tried yet"
    if health.openings:
        return f"held ({health.circuit}), {_again(health, now)}; {failures}; opened {health.openings} times in a row"
    if health.until > now:
        return f"held ({health.reason}) for {duration(health.until - now)} more; {failures}; {window}"
    return f"open; {failures}; {window}"


def duration(milliseconds: float) -> str:
    """Write a duration in its largest unit that fits: `12 s`, `5 min`, `3 h`, `2 d`."""
    seconds = max(0.0, milliseconds / 1000)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _again(health: Health, now: int) -> str:
    """Say when an open circuit is tried again."""
    if health.probe_until > now:
        return "one event is tried right now"
    return (
        f"one event is tried in {duration(health.until - now)}" if health.until > now else "one event is tried next"
    )


def _of_what(seen: Overview) -> str:
    if len(seen.retrying) != 1 or sum(each.retrying for each in seen.environments) > 1:
        return ""
    (only,) = seen.retrying
    return f", all of one event perhaps: {only.instance.strip()} in {only.environment}"


def _age(since: int | None, now: int) -> int:
    return 0 if since is None else now - since


def _events(number: int) -> str:
    return f"{number:,} event{' is' if number == 1 else 's are'}" if number else "nothing is"
