"""What does the watcher do after a failure? It resumes where it was, or lists anew; it hardly ever gives up.

    status            while listing              while watching
    410               list anew                  list anew: what happened since is not told any more
    401, 403          list anew                  resume; credentials are read again before either
    429               list anew                  resume
    400, 422          give up, if it never       resume, and at each fifth failure in a row list anew: the place may
                      listed: a wrong selector   be one that this server does not know (restored from a backup)
    others, or none   list anew                  the same

Each after a pause that grows with the failures in a row, and not before `Retry-After` is over. The first listing
after a 410 of a watch is made at once, however many failures there were before. Nothing is lost by resuming: the
place is that of the last change that was reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING

from relay import backoff

if TYPE_CHECKING:
    from random import Random

    from relay.errors import ClusterUnavailable

#: The pause: the bound that it begins with, and the longest.
PAUSE_SECONDS = (0.5, 30.0)

#: The longest `Retry-After` that is honoured.
RETRY_AFTER_MAX_SECONDS = 300.0

#: Failures in a row to resume, after which it lists anew.
RESUMES = 5

_WRONG_QUESTION = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
_WHO_ARE_YOU = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class Step(StrEnum):
    """What comes next."""

    LIST = "list anew"
    RESUME = "resume"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """A step, and what comes before it."""

    step: Step
    after_seconds: float = 0.0
    #: Whether to read the credentials again.
    renew: bool = False


def next_step(
    error: ClusterUnavailable,
    *,
    is_watching: bool,
    has_listed: bool,
    failures: int,
    random: Random,
    is_first_gone: bool = False,
) -> Next:
    """Decide after the `failures`-th failure in a row (from 1); `has_listed`: whether a listing ever went well.

    `is_first_gone`: whether a 410 would be the first since a watch was good.
    """
    if error.status in _WRONG_QUESTION and not has_listed:
        return Next(step=Step.GIVE_UP)
    after_seconds = max(pause_seconds(failures, random), min(error.retry_after_seconds, RETRY_AFTER_MAX_SECONDS))
    if error.status == HTTPStatus.GONE:
        at_once = failures == 1 or (is_watching and is_first_gone)
        return Next(step=Step.LIST, after_seconds=0.0 if at_once else after_seconds)
    renew = error.status in _WHO_ARE_YOU
    may_resume = renew or error.status == HTTPStatus.TOO_MANY_REQUESTS or failures % RESUMES != 0
    step = Step.RESUME if is_watching and may_resume else Step.LIST
    return Next(step=step, after_seconds=after_seconds, renew=renew)


def pause_seconds(failures: int, random: Random) -> float:
    """Return how long to wait after that many failures in a row."""
    initial, maximum = PAUSE_SECONDS
    return backoff.pause_seconds(failures, initial=initial, maximum=maximum, random=random)
