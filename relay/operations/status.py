"""Words for operators about the relay's status, shared by CLI, console and doctor. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.queue.health import Health


def describe(health: Health, now: int) -> str:
    """Describe a destination's health in a sentence; `now` in Redis milliseconds."""
    state = health.state(now)
    limit = f"up to {health.window} requests at once" if health.window else "no concurrency limit yet"
    failures = f"{health.failures} failed in a row" if health.failures else "the last attempt succeeded"
    if not health.successes and not health.failures:
        failures = "nothing was tried yet"
    if health.openings:
        openings = "once" if health.openings == 1 else f"{health.openings} times in a row"
        return f"{state}, {next_probe(health, now)}; {failures}; circuit opened {openings}"
    if health.until > now:
        return f"{state} for {duration(health.until - now)} more; {failures}; {limit}"
    return f"{state}; {failures}; {limit}"


def next_probe(health: Health, now: int) -> str:
    """Return when an open circuit is probed next."""
    if health.probe_until > now:
        return "a probe is under way"
    return f"the next probe is in {duration(health.until - now)}" if health.until > now else "a probe is next"


def duration(milliseconds: float) -> str:
    """Format a duration in its largest fitting unit: `12 s`, `5 min`, `3 h`, `2 d`."""
    seconds = max(0.0, milliseconds / 1000)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
