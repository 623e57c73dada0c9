"""The report endpoint: reads a request, enqueues its events in a round trip shared with other requests, responds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from redis.exceptions import RedisError
from starlette.requests import ClientDisconnect

from relay.errors import QueueUnavailable, RelayError
from relay.events.event import DeploymentEvent
from relay.gateway import report_parsing, responses, webhook
from relay.gateway.asgi import RequestBody, read_headers
from relay.gateway.auth import ANONYMOUS
from relay.gateway.cdevents import Ignored
from relay.gateway.report_parsing import Fault, Limits
from relay.producer.base import id_or_raise
from relay.producer.queue_producer import CHUNK, AsyncProducer
from relay.queue.counters import note_ignored
from relay.queue.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis
    from starlette.types import Receive, Scope, Send

    from relay.gateway.auth import Principal
    from relay.gateway.responses import Response
    from relay.gateway.tokens import TokenSource
    from relay.http.browsers import Hosts
    from relay.settings import Settings


class ReportEndpoint:
    """An ASGI app for `POST` with one event or many."""

    def __init__(
        self, settings: Settings, tokens: TokenSource, hosts: Hosts, producer: AsyncProducer, client: Redis
    ) -> None:
        self._tokens = tokens
        self._hosts = hosts
        self._producer = producer
        self._client = client
        self._keys = Keys(settings.queue.namespace)
        self._limits = Limits.of(settings.queue.max_event_bytes)
        self._environment = settings.defaults.environment
        self._registry = settings.gateway.default_registry
        # One attempt's time-outs. The producer retries within them; waiting for other requests' reports counts.
        self._deadline_seconds = settings.redis.connect_timeout + settings.redis.timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Enqueue a request's events, and respond."""
        headers = read_headers(scope)
        authorization = webhook.authorization_of(headers, scope["query_string"])
        body = RequestBody(receive, headers)
        try:
            response = await self._accept(headers, authorization, body)
            if webhook.wants_no_body(headers):
                response = webhook.without_body(response)
        except RelayError as error:
            response = responses.of_error(error)
        except ClientDisconnect:
            return
        if query := scope["query_string"]:
            response = webhook.kept_private(response, query)
        await body.respond(response, send)

    async def _accept(self, headers: Mapping[str, str], authorization: str | None, body: RequestBody) -> Response:
        self._hosts.check_page(headers)
        principal = report_parsing.admitted(self._tokens.current().identify(authorization))
        if principal is ANONYMOUS:
            self._hosts.check_host(headers)
        media = report_parsing.media_of(headers)
        envelope = report_parsing.envelope_of(headers)
        content = await body.read(media, self._limits)
        if report_parsing.is_many(media, content):
            return await self._accept_many(media, report_parsing.split(media, content), envelope, principal)
        item = report_parsing.parse(media, content, envelope, principal.registry or self._registry)
        report_parsing.check_environment(item, principal, self._environment)
        if isinstance(item, Ignored):
            await self._count_ignored(1)
            return responses.accepted(item.id)
        return responses.accepted(await self._producer.report_event(item, receipt=item.id is not None))

    async def _accept_many(
        self, media: report_parsing.Media, texts: list[bytes], envelope: report_parsing.Envelope, principal: Principal
    ) -> Response:
        """Enqueue one chunk a round trip: other requests wait for at most the parsing of one chunk."""
        ids_of: dict[int, str] = {}
        faults: list[Fault] = []
        stopped: RelayError | None = None
        registry = principal.registry or self._registry
        for first in range(0, len(texts), CHUNK):
            chunk = report_parsing.parse_many(
                media, texts[first : first + CHUNK], first, envelope, self._limits, registry=registry
            )
            chunk = report_parsing.check_environments(chunk, first, principal, self._environment)
            faults += [item for item in chunk if isinstance(item, Fault)]
            valid = {first + at: item for at, item in enumerate(chunk) if not isinstance(item, Fault)}
            if not valid or stopped is not None:  # the rest is still parsed, so that the response has all faults
                await asyncio.sleep(0)
                continue
            try:
                ids = await self._enqueue(list(valid.values()))
            except RelayError as error:
                stopped = error
            else:
                ids_of.update(zip(valid, ids, strict=True))
        return responses.accepted_many([ids_of.get(place) for place in range(len(texts))], faults, stopped)

    async def _enqueue(self, items: list[DeploymentEvent | Ignored]) -> list[str]:
        """Enqueue the events, with a receipt each, and count the ignored ones; return the ids of all."""
        events = [item for item in items if isinstance(item, DeploymentEvent)]
        ids = map(id_or_raise, await self._producer.report_many(events, receipts=True))
        if len(events) < len(items):
            await self._count_ignored(len(items) - len(events))
        return [item.id if isinstance(item, Ignored) else next(ids) for item in items]

    async def _count_ignored(self, number: int) -> None:
        try:
            async with asyncio.timeout(self._deadline_seconds):
                await note_ignored(self._client, self._keys, number)
        except (RedisError, TimeoutError) as error:
            raise QueueUnavailable("Redis did not count it") from error
