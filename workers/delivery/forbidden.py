"""The decision whether a refused token is the fault of the token or of one event. Pure.

A 401 or 403 is the token's fault until other events pass. A 403 that an event gets again and again while others pass
is about its environment, and refuses that event alone. A 401 never does: an event that gets it while others pass is
tried ever later, and delays no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from relay.queue.outbox import Trials

#: Refusals of an event, with others passing between each two, after which a 403 refuses it for good. Its 401s before
#: count too.
FORBIDDEN = 3

_FORBIDDEN_STATUS = 403


class TokenFault(NamedTuple):
    """The event's trials now, whether the refusal is its own fault, and whether it is refused for good."""

    trials: Trials
    own_fault: bool
    is_forbidden: bool


def decide_token_fault(trials: Trials, status: int, *, successes: int, successes_when_sent: int) -> TokenFault:
    """Decide whose fault a 401 or 403 is, from the successes that the destination has had with other events.

    `successes` are the destination's so far, of all workers; `successes_when_sent` those when this event was sent.
    """
    was_refused = trials.forbidden > 0
    others_passed_since = was_refused and successes > trials.successes
    refusals = trials.forbidden + 1 if others_passed_since else max(1, trials.forbidden)
    return TokenFault(
        trials._replace(forbidden=refusals, successes=successes),
        own_fault=others_passed_since or successes > successes_when_sent,
        is_forbidden=status == _FORBIDDEN_STATUS and others_passed_since and refusals >= FORBIDDEN,
    )
