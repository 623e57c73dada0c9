"""The last event whose `time` was further ahead of Redis's clock than is believed, and how many there were.

One string, whatever the number of sources: once the clock of the one that is named is right, the next is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from redis import Redis

    from relay.queue.keys import Keys

#: How long the last one is shown.
SHOWN_SECONDS = 86_400


class ClockAhead(NamedTuple):
    """An event from a clock that is ahead. The source is '' if the event names none."""

    ahead_ms: int
    environment: str
    source: str

    def encode(self) -> str:
        """Return the key's value; names have no line breaks."""
        return f"{self.ahead_ms}\n{self.environment}\n{self.source}"

    @classmethod
    def decode(cls, value: str) -> Self:
        """Parse the key's value."""
        ahead_ms, environment, source = value.split("\n")
        return cls(int(ahead_ms), environment, source)


def note(client: Redis, keys: Keys, number: int, latest: ClockAhead) -> None:
    """Count such events, and keep one of them to be shown."""
    pipeline = client.pipeline(transaction=False)
    pipeline.hincrby(keys.counts, "clock_ahead", number)
    pipeline.set(keys.clock_ahead, latest.encode(), ex=SHOWN_SECONDS)
    pipeline.execute()
