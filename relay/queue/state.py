"""The state of an instance, and its encoding.

Lines: digest, the
deployment's time, when it was accepted, when the instance was last seen, then the ids of the last few
accepted events, the newest last. Times are milliseconds since the epoch; an unknown time is empty. Events of one
millisecond are told apart as Redis's stream ids do it: the third line is `1750000000000`, or `1750000000000-2`.
The fourth is when it was seen, or `<seen> <resynced> <confirmed>`, without the zeros at its end. A line with a tab
and `repeat_time` may come before the ids: older versions take it for an id, which none can be, and keep it. The
digest is empty where the first event of an instance died, and a newer time that a duplicate of it gave is known.
"""

from __future__ import annotations

from typing import NamedTuple

#: A duplicate refreshes "last seen" only when that is older than this, so that a snapshot writes little: an instance
#: may have been seen that much later than its state says.
SEEN_STEP_MS = 3_600_000

#: Ids of accepted events that an instance remembers, against producers' late retries.
REMEMBERED_IDS = 8


class Accepted(NamedTuple):
    """What was last accepted for an instance."""

    digest: str
    time: int | None
    at: int
    seen: int
    ids: tuple[str, ...]
    #: The event's place among those that came in the same millisecond.
    sequence: int = 0
    #: When the resync arrived for which it was put on its way again, 0 if there was none since.
    resynced: int = 0
    #: Since a dead letter gave the state back: until when this is known to have run, by reports that were duplicates;
    #: 1 before the first of them, 0 if no state was ever given back. Not the last event's alone: it is carried on.
    confirmed: int = 0
    #: The newest time that a duplicate gave and no event, 0 if that is not newer than what was delivered. A duplicate
    #: is done, so its time counts whatever becomes of the event that it repeated. Carried on as `confirmed` is.
    repeat_time: int = 0

    @property
    def arrival(self) -> tuple[int, int]:
        """The event's place among all that were enqueued."""
        return self.at, self.sequence

    def encode(self) -> str:
        """Return the hash field's value."""
        digest, time, at, seen, ids, sequence, resynced, confirmed, repeat_time = self
        marks = f" {resynced} {confirmed}" if confirmed else f" {resynced}" if resynced else ""
        place = f"{at}-{sequence}" if sequence else at
        head = f"{digest}\n{'' if time is None else time}\n{place}\n{seen}{marks}"
        return "\n".join((head, f"\t{repeat_time}", *ids) if repeat_time else (head, *ids))

    @classmethod
    def decode(cls, value: str) -> Accepted:
        """Parse the hash field's value."""
        digest, time, place, seen, *ids = value.split("\n")
        at, _, sequence = place.partition("-")
        resynced = confirmed = "0"
        if " " in seen:
            seen, resynced, confirmed = f"{seen} 0".split(" ")[:3]
        repeat_time = int(ids.pop(0)) if ids and ids[0].startswith("\t") else 0
        return cls(
            digest,
            int(time) if time else None,
            int(at),
            int(seen),
            tuple(ids),
            int(sequence) if sequence else 0,
            int(resynced),
            int(confirmed),
            repeat_time,
        )


class Delivered(NamedTuple):
    """What was last delivered for an instance; written by commit_delivery.lua."""

    digest: str
    #: The newest time that was known of the instance when that was accepted, its own included.
    time: int | None
    #: When that was recorded.
    at: int
    #: The event's place among all that were enqueued, as `written_arrival` has it: a dead letter restores it as the
    #: third line of what counts as accepted.
    came: str = ""

    @classmethod
    def decode(cls, value: str) -> Delivered:
        """Read the hash field's value."""
        digest, time, at, came = value.split("\n")
        return cls(digest, int(time) if time else None, int(at), came)


def state_after_dead_letter(accepted: Accepted, delivered: Delivered | None, event_id: str) -> Accepted | None:
    """Return an instance's state once one of its events is a dead letter, None for no state.

    The event's id is forgotten, so that the same report made later is not a duplicate. If it was the last accepted,
    the last delivered one counts again, with the newest time that is known without the dead one: the delivered one's,
    or that of a duplicate. A report of the digest that counts again says that it ran, so its time stays.
    """
    kept = accepted._replace(ids=tuple(one for one in accepted.ids if one != event_id), resynced=0)
    if accepted.ids[-1:] != (event_id,):
        return kept
    if delivered is not None:
        times = [delivered.time, accepted.repeat_time or None]
        times += [accepted.time] if delivered.digest == accepted.digest else []
        at, _, sequence = delivered.came.partition("-")
        return kept._replace(
            digest=delivered.digest,
            time=max((time for time in times if time is not None), default=None),
            at=int(at),
            sequence=int(sequence or 0),
            confirmed=accepted.confirmed or 1,  # from here on it is noted when what counts again is reported
        )
    if accepted.repeat_time:  # nothing counts again that could be confirmed
        return kept._replace(digest="", time=accepted.repeat_time, at=0, sequence=0, confirmed=0)
    return None


def written_arrival(at: int, sequence: int) -> str:
    """Return an event's place among all that were enqueued, as text."""
    return f"{at}-{sequence}" if sequence else f"{at}"
