"""Kubernetes' admission reviews: always allowed, and in time, whatever becomes of the report.

A cluster must have a name before anything of it is reported (`kubernetes.cluster`), because clusters that share one
overwrite each other's reports. Where `gateway.admission` was chosen, a gateway without the name does not start. With
the default, which a gateway without Kubernetes has too, it starts, and reviews are allowed and counted.

A review that waits holds up a deployment. So the answer goes out once Redis has the events or `ANSWER_SECONDS` are
over, and a report that is not through by then goes on without it. What is lost while Redis is away for long, the
watcher's next snapshot reports (docs/kubernetes.md).
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
from relay.gateway.asgi import headers_of
from relay.gateway.auth import EVERYBODY, Caller
from relay.gateway.body import Body
from relay.gateway.nodes import Nodes
from relay.gateway.report_parsing import NotPermitted
from relay.gateway.responses import Answer, of_error
from relay.gateway.tokens import AdmissionSecrets
from relay.gateway.webhook import authorization_of
from relay.http.counted import CountedLog
from relay.http.refused import Refused
from relay.kubernetes.admission import allow, judge
from relay.kubernetes.naming import Naming
from relay.kubernetes.skip_reason import Skipped
from relay.logs import get_logger
from relay.queue.counters import note_skipped
from relay.queue.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis
    from starlette.types import Receive, Scope, Send

    from relay.events.event import DeploymentEvent
    from relay.gateway.auth import Stranger
    from relay.gateway.tokens import TokenSource
    from relay.http.browsers import Hosts
    from relay.kubernetes.admission import Review
    from relay.producer.queue_producer import AsyncProducer
    from relay.settings import Settings

#: The largest review that is read: an object and the one before it, of at most 1.5 MiB each as etcd takes them.
MAX_REVIEW_BYTES = 4 * 1024 * 1024

#: What is read of a review that reports nothing whatever it says, because it is larger or the door is shut to it: the
#: answer must repeat the uid, which the API server writes near the beginning. Most reviews are whole within this.
UID_BYTES = 64 * 1024

#: How long a review waits for its body, and then for Redis.
BODY_SECONDS = 0.1
ANSWER_SECONDS = 0.05

#: Reports that may go on after their reviews were answered; more are given up, and counted.
MAX_BEHIND = 1000

#: Reviews that are answered and wait to be read, until Redis has said for the first time whether a watcher publishes
#: platforms; each may have `MAX_REVIEW_BYTES`. Further ones, and those that wait longer, guess no platform.
MAX_UNREAD = 16
UNREAD_SECONDS = 30.0

#: How long what was skipped is gathered before it is counted in Redis.
COUNT_SECONDS = 1.0

_log = logging.getLogger("relay.gateway")


class Reviewing:
    """An ASGI app for `POST /admission`."""

    def __init__(
        self, settings: Settings, tokens: TokenSource, hosts: Hosts, producer: AsyncProducer, client: Redis
    ) -> None:
        self._door = settings.gateway.admission
        self._tokens = tokens
        self._secrets = AdmissionSecrets(settings.gateway)
        self._hosts = hosts
        self._refused = CountedLog(get_logger("relay.gateway"), "admission reviews are allowed and not reported")
        self._producer = producer
        self._client = client
        self._keys = Keys(settings.queue.namespace)
        is_named = bool(settings.kubernetes.cluster)
        self._naming = Naming.of(settings.kubernetes) if is_named or settings.expects_reviews else None
        #: Whether reviews would report, had the cluster a name.
        self._is_nameless = self._naming is None and self._door != "off"
        self._nodes = Nodes(client, self._keys, self._naming.cluster if self._naming else "")
        self._environment = settings.defaults.environment
        #: Reports under way, and those among them that outlasted the answers to their reviews.
        self._behind: set[asyncio.Task[None]] = set()
        self._late: set[asyncio.Task[None]] = set()
        #: Reviews that are answered and not read.
        self._unread = 0
        self._skipped: Counter[str] = Counter()
        self._counting: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Let the reports that are under way end, and count what is left to count."""
        self._refused.close()
        if self._counting is not None:
            self._counting.cancel()
            await asyncio.gather(self._counting, return_exceptions=True)
        await self._nodes.close()
        await asyncio.gather(*self._behind, return_exceptions=True)
        await self._count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a review, and report what it deploys."""
        headers = headers_of(scope)
        body = Body(receive, headers)
        try:
            self._hosts.check_page(headers)  # the API server is no browser, so this answer delays no deployment
            caller = self._caller(headers, scope["path_params"].get("secret", "").removesuffix("/"))
        except Refused as error:
            await body.answer(of_error(error), send)
            return
        content = await body.begin(UID_BYTES if caller is None else MAX_REVIEW_BYTES, seconds=BODY_SECONDS)
        is_whole = body.ended and len(content) <= MAX_REVIEW_BYTES
        try:
            document = await self._review(caller if is_whole else None, content)
        except Exception as error:  # noqa: BLE001 - the edge: a deployment must not wait for a fault of ours
            _log.error("an admission review failed, and was allowed: %s", type(error).__qualname__)
            document = allow(content[:UID_BYTES])
        await body.answer(Answer(status=HTTPStatus.OK, document=document), send)

    async def _review(self, caller: Caller | None, content: bytes) -> Mapping[str, Any]:
        if caller is not None and self._is_nameless:
            self._note_nameless()
        if caller is None or self._naming is None:
            return allow(content[:UID_BYTES])
        is_known = await self._nodes.wait()
        if not is_known and self._unread < MAX_UNREAD:
            self._unread += 1
            reading = asyncio.create_task(self._review_later(caller, content, self._naming))
            self._behind.add(reading)
            reading.add_done_callback(self._behind.discard)
            return allow(content[:UID_BYTES])
        review = judge(content, self._naming, self._nodes.known if is_known else {})
        events = self._permitted(caller, review)
        if events:
            await self._report(events)
        return review.response

    async def _review_later(self, caller: Caller, content: bytes, naming: Naming) -> None:
        """Read a review once Redis has said whether it has a node map; without that, no platform is guessed."""
        try:
            is_known = await self._nodes.wait(UNREAD_SECONDS)
        finally:
            self._unread -= 1
        review = judge(content, naming, self._nodes.known if is_known else {})
        if events := self._permitted(caller, review):
            await self._enqueue(events)

    def _permitted(self, caller: Caller, review: Review) -> list[DeploymentEvent]:
        """Return what a review reports and its caller may; count the rest."""
        self._note(review.skipped)
        return [event for event in review.events if self._permits(caller, event)]

    def _caller(self, headers: Mapping[str, str], secret: str) -> Caller | None:
        """Return who reports, None for a client that may not, or for a review that is declared too large."""
        if self._door == "off" or report_parsing.declared_size(headers) > MAX_REVIEW_BYTES:
            return None
        caller = self._identified(headers, secret)
        if caller is None:
            self._refused.note(
                "no token or secret, or a wrong one (gateway.admission, gateway.admission_secret_file)"
            )
        elif not cloudevents.is_json(headers.get("content-type", "")):
            self._refused.note("their Content-Type is not application/json")
            return None
        return caller

    def _identified(self, headers: Mapping[str, str], secret: str) -> Caller | None:
        if secret:
            return self._secrets.match(secret)
        found: Caller | Stranger = Caller(name="admission")
        if self._door == "token":
            found = self._tokens.current().identify(authorization_of(headers))
        if not isinstance(found, Caller) or (found is EVERYBODY and self._secrets.are_set):
            return None
        is_checked = found is not EVERYBODY and self._door != "open"
        return found if is_checked or self._hosts.has_own_host(headers) else None

    def _permits(self, caller: Caller, event: DeploymentEvent) -> bool:
        try:
            report_parsing.checked_environment(event, caller, self._environment)
        except NotPermitted:
            self._note(Counter([Skipped.NOT_PERMITTED]))
            return False
        return True

    async def _report(self, events: list[DeploymentEvent]) -> None:
        """Report, and wait for it as long as the answer may wait: not at all while others have waited in vain."""
        if len(self._behind) >= MAX_BEHIND:
            self._note(Counter({Skipped.NOT_REPORTED: len(events)}))
            return
        reporting = asyncio.create_task(self._enqueue(events))
        self._behind.add(reporting)
        reporting.add_done_callback(self._behind.discard)
        reporting.add_done_callback(self._late.discard)
        if not self._late:
            _, still_waiting = await asyncio.wait([reporting], timeout=ANSWER_SECONDS)
            self._late |= still_waiting

    async def _enqueue(self, events: list[DeploymentEvent]) -> None:
        try:
            await self._producer.report_many(events)
        except RelayError as error:
            if not self._skipped[Skipped.NOT_REPORTED]:  # once each time that it is counted, not for each review
                _log.warning("what admission reviews deploy is not reported: %s", type(error).__name__)
            self._note(Counter({Skipped.NOT_REPORTED: len(events)}))

    def _note_nameless(self) -> None:
        if not self._skipped[Skipped.CLUSTER_UNNAMED]:  # once each time that it is counted, not for each review
            _log.warning(
                "admission reviews are allowed and not reported: set CLUSTER_NAME, or gateway.admission = off"
            )
        self._note(Counter([Skipped.CLUSTER_UNNAMED]))

    def _note(self, skipped: Counter[Skipped]) -> None:
        """Gather what is to be counted, so that not each review costs a round trip of its own."""
        self._skipped.update({str(reason): number for reason, number in skipped.items()})
        if self._skipped and self._counting is None:
            self._counting = asyncio.create_task(self._count_later())

    async def _count_later(self) -> None:
        try:
            await asyncio.sleep(COUNT_SECONDS)
            await self._count()
        finally:
            self._counting = None

    async def _count(self) -> None:
        skipped, self._skipped = self._skipped, Counter()
        with contextlib.suppress(RedisError):  # then it goes uncounted: nothing of an event hangs on it
            await note_skipped(self._client, self._keys, skipped)
