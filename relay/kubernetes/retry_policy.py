"""The watcher's retry policy: resume the watch, list again, or give up. Pure.

    status            while listing              while watching
    410               list again                 list again: the server no longer has the changes since
    401, 403          list again                 resume; credentials are read again before either
    429               list again                 resume
    400, 422          give up, if it never       resume, and list again at each fifth failure in a row: the server may
                      listed: a wrong selector   not know the position (restored from a backup)
    others, or none   list again                 the same

Each step follows a pause that grows with the failures in a row, and is at least `Retry-After`. The first listing
after a 410 of a watch is immediate, whatever the number of failures. Resuming loses nothing: the position is that of
the last reported change.
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

#: The initial and the maximum bound of the pause.
PAUSE_SECONDS = (0.5, 30.0)

#: Maximum `Retry-After` that is applied.
RETRY_AFTER_MAX_SECONDS = 300.0

#: Failures in a row after which a watch is not resumed but listed again.
RESUMES = 5

_INVALID_REQUEST = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
_UNAUTHENTICATED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class Step(StrEnum):
    """The next step."""

    LIST = "list again"
    RESUME = "resume"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """The next step, and what precedes it."""

    step: Step
    after_seconds: float = 0.0
    #: Whether to read the credentials again.
    renew: bool = False


def decide_step(
    error: ClusterUnavailable,
    *,
    is_watching: bool,
    has_listed: bool,
    failures: int,
    random: Random,
    is_first_gone: bool = False,
) -> Next:
    """Return the step after the `failures`-th failure in a row (from 1).

    `has_listed` is whether a listing ever succeeded, `is_first_gone` whether a 410 would be the first since a watch
    succeeded.
    """
    if error.status in _INVALID_REQUEST and not has_listed:
        return Next(step=Step.GIVE_UP)
    after_seconds = max(pause_seconds(failures, random), min(error.retry_after_seconds, RETRY_AFTER_MAX_SECONDS))
    if error.status == HTTPStatus.GONE:
        at_once = failures == 1 or (is_watching and is_first_gone)
        return Next(step=Step.LIST, after_seconds=0.0 if at_once else after_seconds)
    renew = error.status in _UNAUTHENTICATED
    may_resume = renew or error.status == HTTPStatus.TOO_MANY_REQUESTS or failures % RESUMES != 0
    step = Step.RESUME if is_watching and may_resume else Step.LIST
    return Next(step=step, after_seconds=after_seconds, renew=renew)


def pause_seconds(failures: int, random: Random) -> float:
    """Return the pause after that many failures in a row."""
    initial, maximum = PAUSE_SECONDS
    return backoff.pause_seconds(failures, initial=initial, maximum=maximum, random=random)
