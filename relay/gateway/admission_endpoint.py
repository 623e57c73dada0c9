"""The admission endpoint: allows every AdmissionReview of Kubernetes in time, and reports its events.

Nothing is reported without a cluster name (`kubernetes.cluster`), because clusters that share one overwrite each
other's reports. A gateway with an explicit `gateway.admission` and no name does not start. With the default, which a
gateway without Kubernetes also has, it starts, and reviews are allowed and counted.

A slow review delays a deployment. So the response is sent once Redis has the events or `ANSWER_SECONDS` have passed,
and a slower report continues in the background. Reports lost in a long outage of Redis are repeated by the watcher's
next snapshot (docs/kubernetes.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from relay.errors import RelayError
from relay.gateway import cloudevents, report_parsing
from relay.gateway.asgi import RequestBody, read_headers
from relay.gateway.auth import ANONYMOUS, Principal, Rejection
from relay.gateway.nodes import NodePlatforms
from relay.gateway.report_parsing import NotPermitted
from relay.gateway.responses import Response, of_error
from relay.gateway.tokens import AdmissionSecrets
from relay.gateway.webhook import authorization_of
from relay.http.counted_log import CountedLog
from relay.http.refused import Refused
from relay.kubernetes.admission import allow, read_review
from relay.kubernetes.naming import Naming
from relay.kubernetes.skip_reason import SkipReason
from relay.logs import get_logger
from relay.producer.base import id_or_raise
from relay.queue.counters import note_skipped
from relay.queue.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from redis.asyncio import Redis
    from starlette.types import Receive, Scope, Send

    from relay.events.event import DeploymentEvent
    from relay.gateway.tokens import TokenSource
    from relay.http.browsers import Hosts
    from relay.kubernetes.admission import Review
    from relay.producer.queue_producer import AsyncProducer
    from relay.settings import Settings

#: Maximum review that is reported: an object and the one before it, of up to 1.5 MiB each (etcd's limit).
MAX_REVIEW_BYTES = 4 * 1024 * 1024

#: Bytes read of a review that is not reported, because it is larger or not permitted: the response must repeat the
#: uid, which the API server writes near the beginning. Most reviews are smaller than this.
UID_BYTES = 64 * 1024

#: Maximum time that a response waits for the review's body, and then for Redis.
BODY_SECONDS = 0.1
ANSWER_SECONDS = 0.05

#: Maximum reports that continue after the responses to their reviews; further ones are dropped and counted.
MAX_BEHIND = 1000

#: Maximum reviews kept unread after their responses, of up to `MAX_REVIEW_BYTES` each, and the maximum time: until
#: Redis first replies whether a watcher publishes platforms. Without a reply, no platform is guessed.
MAX_UNREAD = 16
UNREAD_SECONDS = 30.0

#: The time over which skipped events are summed up before they are counted in Redis.
COUNT_SECONDS = 1.0

_log = logging.getLogger("relay.gateway")


class AdmissionEndpoint:
    """An ASGI app for `POST /admission`."""

    def __init__(
        self, settings: Settings, tokens: TokenSource, hosts: Hosts, producer: AsyncProducer, client: Redis
    ) -> None:
        self._mode = settings.gateway.admission
        self._tokens = tokens
        self._secrets = AdmissionSecrets(settings.gateway)
        self._hosts = hosts
        self._refused = CountedLog(get_logger("relay.gateway"), "admission reviews are allowed and not reported")
        self._producer = producer
        keys = Keys(settings.queue.namespace)
        is_named = bool(settings.kubernetes.cluster)
        self._naming = Naming.of(settings.kubernetes) if is_named or settings.expects_reviews else None
        #: Whether only the missing cluster name prevents reports.
        self._lacks_name = self._naming is None and self._mode != "off"
        self._nodes = NodePlatforms(client, keys, self._naming.cluster if self._naming else "")
        self._environment = settings.defaults.environment
        self._skipped = _SkipCounts(client, keys)
        #: Reports under way, and those that outlasted the responses to their reviews.
        self._tasks: set[asyncio.Task[None]] = set()
        self._late: set[asyncio.Task[None]] = set()
        #: The number of reviews that are answered and not read yet.
        self._unread = 0

    async def close(self) -> None:
        """Let the reports under way end, and write the last counts."""
        self._refused.close()
        await self._nodes.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._skipped.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Allow a review, and report its events."""
        headers = read_headers(scope)
        body = RequestBody(receive, headers)
        try:
            self._hosts.check_page(headers)  # delays no deployment: the API server is no browser
            principal = self._authenticate(headers, scope["path_params"].get("secret", "").removesuffix("/"))
        except Refused as error:
            await body.respond(of_error(error), send)
            return
        content = await body.read_start(UID_BYTES if principal is None else MAX_REVIEW_BYTES, seconds=BODY_SECONDS)
        is_whole = body.ended and len(content) <= MAX_REVIEW_BYTES
        try:
            document = await self._review(principal if is_whole else None, content)
        except Exception as error:  # noqa: BLE001 - the edge: a defect here must not delay a deployment
            _log.error("an admission review failed, and was allowed: %s", type(error).__qualname__)
            document = allow(content[:UID_BYTES])
        await body.respond(Response(HTTPStatus.OK, document), send)

    def _authenticate(self, headers: Mapping[str, str], secret: str) -> Principal | None:
        """Return the principal of a review; None if it may not report, or is declared too large."""
        if self._mode == "off" or report_parsing.declared_size(headers) > MAX_REVIEW_BYTES:
            return None
        principal = self._identify(headers, secret)
        if principal is None:
            self._refused.note(
                "no token or secret, or a wrong one (gateway.admission, gateway.admission_secret_file)"
            )
        elif not cloudevents.is_json(headers.get("content-type", "")):
            self._refused.note("their Content-Type is not application/json")
            return None
        return principal

    def _identify(self, headers: Mapping[str, str], secret: str) -> Principal | None:
        if secret:
            return self._secrets.match(secret)
        found: Principal | Rejection = Principal(name="admission")
        if self._mode == "token":
            found = self._tokens.current().identify(authorization_of(headers))
        if isinstance(found, Rejection) or (found is ANONYMOUS and self._secrets.are_set):
            return None
        is_checked = found is not ANONYMOUS and self._mode != "open"
        return found if is_checked or self._hosts.has_own_host(headers) else None

    async def _review(self, principal: Principal | None, content: bytes) -> Mapping[str, Any]:
        """Return the AdmissionReview to respond with; its events are reported by then, or in the background."""
        if principal is not None and self._lacks_name:
            if not self._skipped.has(SkipReason.CLUSTER_UNNAMED):  # one line for each count, not for each review
                _log.warning(
                    "admission reviews are allowed and not reported: set CLUSTER_NAME, or gateway.admission = off"
                )
            self._skipped.add(Counter([SkipReason.CLUSTER_UNNAMED]))
        if principal is None or self._naming is None:
            return allow(content[:UID_BYTES])
        is_known = await self._nodes.wait()
        if not is_known and self._unread < MAX_UNREAD:
            self._unread += 1
            self._start(self._review_later(principal, content, self._naming))
            return allow(content[:UID_BYTES])
        review = read_review(content, self._naming, self._nodes.known if is_known else {})
        if events := self._permitted(principal, review):
            await self._report(events)
        return review.response

    async def _review_later(self, principal: Principal, content: bytes, naming: Naming) -> None:
        """Read and report a review once Redis has replied whether there is a node map."""
        try:
            is_known = await self._nodes.wait(UNREAD_SECONDS)
        finally:
            self._unread -= 1
        review = read_review(content, naming, self._nodes.known if is_known else {})
        if events := self._permitted(principal, review):
            await self._enqueue(events)

    def _permitted(self, principal: Principal, review: Review) -> list[DeploymentEvent]:
        """Return the events that the principal may report; count the others, and those that the review skips."""
        self._skipped.add(review.skipped)
        permitted = []
        for event in review.events:
            try:
                report_parsing.check_environment(event, principal, self._environment)
                permitted.append(event)
            except NotPermitted:
                self._skipped.add(Counter([SkipReason.NOT_PERMITTED]))
        return permitted

    async def _report(self, events: list[DeploymentEvent]) -> None:
        """Start a report, and wait for it up to `ANSWER_SECONDS`, or not at all while earlier ones are late."""
        if len(self._tasks) >= MAX_BEHIND:
            self._skipped.add(Counter({SkipReason.NOT_REPORTED: len(events)}))
            return
        reporting = self._start(self._enqueue(events))
        reporting.add_done_callback(self._late.discard)
        if not self._late:
            _, still_waiting = await asyncio.wait([reporting], timeout=ANSWER_SECONDS)
            self._late |= still_waiting

    async def _enqueue(self, events: list[DeploymentEvent]) -> None:
        try:
            for outcome in await self._producer.report_many(events):
                id_or_raise(outcome)
        except RelayError as error:
            if not self._skipped.has(SkipReason.NOT_REPORTED):  # one line for each count, not for each review
                _log.warning("events of admission reviews are not reported: %s", type(error).__name__)
            self._skipped.add(Counter({SkipReason.NOT_REPORTED: len(events)}))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _SkipCounts:
    """Counts of skipped events by reason, written every `COUNT_SECONDS` so that a review costs no round trip."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._counts: Counter[str] = Counter()
        self._timer: asyncio.Task[None] | None = None

    def has(self, reason: SkipReason) -> bool:
        """Return whether the reason was added since the last write."""
        return self._counts[reason] > 0

    def add(self, skipped: Counter[SkipReason]) -> None:
        """Add counts, to be written at most `COUNT_SECONDS` later."""
        self._counts.update({str(reason): number for reason, number in skipped.items()})
        if self._counts and self._timer is None:
            self._timer = asyncio.create_task(self._write_later())

    async def close(self) -> None:
        """Write the counts."""
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.gather(self._timer, return_exceptions=True)
        await self._write()

    async def _write_later(self) -> None:
        try:
            await asyncio.sleep(COUNT_SECONDS)
            await self._write()
        finally:
            self._timer = None

    async def _write(self) -> None:
        counts, self._counts = self._counts, Counter()
        with contextlib.suppress(RedisError):  # these counts are lost; no event depends on them
            await note_skipped(self._client, self._keys, counts)
