"""The operator's actions: each form does one, writes a log line, and leads to a page."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from relay.console import dead_letters
from relay.console.filters import plural
from relay.console.pages import PageError, local_path, redirect, url
from relay.console.sign_in import LONGEST_LOGGED
from relay.errors import QueueUnavailable
from relay.events.event import MAX_NAME_BYTES
from relay.logs import get_logger
from relay.queue import health, pausing
from relay.queue.redrive import LEASE_SECONDS
from relay.queue.shard import Shard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from starlette.responses import Response

    from relay.console.dead_letters import ActionResult, Selection
    from relay.console.queue_client import QueueClient
    from relay.console.sign_in import OperatorRequest
    from relay.settings import Settings

#: The words of a notice, by the action and by why it did not do more; other values in a URL are ignored.
_DONE = {"redrive": "redriven", "drop": "dropped"}
_WHY = {
    "busy": "Another redrive is under way, or was killed less than "
    f"{LEASE_SECONDS:g} seconds ago: try again when it has ended.",
    "full": "The queue is full: continue when there is room.",
    "more": "There may be more: send the form again for the rest.",
    "gone": "It is not there any more.",
}

#: Maximum digits of a number in a notice.
_DIGITS = 7

_Result = TypeVar("_Result")

_log = get_logger("relay.console")


class Actions:
    """The forms' handlers."""

    def __init__(self, queue: QueueClient, settings: Settings) -> None:
        self._queue = queue
        self._destination = settings.destination
        self._max_backlog = settings.queue.max_backlog

    async def pause(self, request: OperatorRequest) -> Response:
        """Pause an environment."""
        name = _environment(request.form)
        pausing_it = self._queue.ask(lambda client, keys: pausing.pause(client, keys, self._destination, [name]))
        await _logged(request, "pause", pausing_it, environment=name)
        return _back(request)

    async def resume(self, request: OperatorRequest) -> Response:
        """Resume an environment."""
        name = _environment(request.form)
        resuming_it = self._queue.ask(lambda client, keys: pausing.resume(client, keys, self._destination, [name]))
        await _logged(request, "resume", resuming_it, environment=name)
        return _back(request)

    async def lift(self, request: OperatorRequest) -> Response:
        """End the destination's throttle, or probe it at once."""
        lifting = self._queue.ask(
            lambda client, keys: health.lift(Shard(client=client, keys=keys), self._destination)
        )
        await _logged(request, "lift", lifting, destination=self._destination)
        return _back(request)

    async def redrive(self, request: OperatorRequest) -> Response:
        """Redrive one dead letter, or those of a filter."""
        form = request.form
        force = form.get("force", "") == "yes"
        forced = {"force": "yes"} if force else {}
        if letter_id := form.get("id", ""):
            redriving = dead_letters.redrive_one(self._queue, letter_id, max_backlog=self._max_backlog, force=force)
            return _result("redrive", await _logged(request, "redrive", redriving, letter=letter_id, **forced), {})
        selection = confirmed(form)
        redriving = dead_letters.redrive_set(self._queue, selection, max_backlog=self._max_backlog, force=force)
        done = await _logged(request, "redrive", redriving, **selection.query, **forced)
        return _result("redrive", done, selection.query)

    async def drop(self, request: OperatorRequest) -> Response:
        """Drop one dead letter, or those of a filter."""
        if letter_id := request.form.get("id", ""):
            dropping = dead_letters.drop_one(self._queue, letter_id)
            return _result("drop", await _logged(request, "drop", dropping, letter=letter_id), {})
        selection = confirmed(request.form)
        dropping = dead_letters.drop_set(self._queue, selection)
        return _result("drop", await _logged(request, "drop", dropping, **selection.query), selection.query)


def selected(form: Mapping[str, str]) -> Selection:
    """Return the selection of dead letters; raise `PageError` for a filter that cannot be read."""
    selection = dead_letters.Selection.of(form)
    if selection.faults:
        raise PageError(HTTPStatus.BAD_REQUEST, "Not understood", "; ".join(selection.faults))
    return selection


def confirmed(form: Mapping[str, str]) -> Selection:
    """Return the selection of a confirmed form, which excludes letters that died after it was shown."""
    selection = selected(form)
    if selection.filters.dead_until is None:
        raise PageError(HTTPStatus.BAD_REQUEST, "Not understood", "The form does not have the time it was shown at.")
    return selection


def notice(query: Mapping[str, str]) -> str:
    """Return the notice of an action's result, made of fixed words and a number."""
    done, count = _DONE.get(query.get("done", "")), query.get("letters", "")
    if done is None or not count.isascii() or not count.isdecimal() or len(count) > _DIGITS:
        return ""
    return f"{plural(int(count), 'dead letter')} {done}. {_WHY.get(query.get('why', ''), '')}".strip()


async def _logged(request: OperatorRequest, action: str, doing: Awaitable[_Result], **what: str) -> _Result:
    """Await an action, and log it with its session; without a reply of Redis it may have had its effect."""
    line = {"action": action, "session": request.session.name, "address": request.address}
    line |= {name: value[:LONGEST_LOGGED] for name, value in what.items()}
    try:
        result = await doing
    except QueueUnavailable:
        _log.warning("console action without a reply of Redis", **line)
        raise
    _log.info("console action", **line, **(result._asdict() if isinstance(result, dead_letters.ActionResult) else {}))
    return result


def _environment(form: Mapping[str, str]) -> str:
    name = form.get("environment", "")
    if not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise PageError(HTTPStatus.BAD_REQUEST, "No environment", "The form names no environment.")
    return name


def _back(request: OperatorRequest) -> Response:
    return redirect(local_path(request.form.get("back", "")))


def _result(action: str, done: ActionResult, query: Mapping[str, str]) -> Response:
    return redirect(url("dead", query, done=action, letters=done.letters, why=done.why))
