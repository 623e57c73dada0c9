"""The producer that `relay report` uses: Redis, a gateway, or none (`--dry-run`)."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import typer
from pydantic_core import from_json, to_json

from relay.producer.base import BaseProducer, oversize, send_valid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from relay.events.event import DeploymentEvent
    from relay.producer.base import Given, Outcome
    from relay.queue.receipts import Receipt
    from relay.settings import Settings


@contextmanager
def open_producer(settings: Settings, *, dry_run: bool) -> Iterator[BaseProducer]:
    """Open the producer that the settings name; only its own modules are imported."""
    if dry_run:
        yield DryRun(settings)
    elif settings.producer.gateway_url:
        from relay.producer.gateway_producer import GatewayProducer  # noqa: PLC0415 - imports requests

        with GatewayProducer(settings=settings) as through_gateway:
            yield through_gateway
    else:
        from relay.producer.queue_producer import Producer  # noqa: PLC0415 - imports redis

        with Producer(settings=settings) as producer:
            try:
                yield producer
            finally:
                if spooled := producer.spooled:
                    typer.echo(f"{spooled} spooled; sent by the next report, or by `relay spool flush`", err=True)


class DryRun(BaseProducer):
    """Prints the entries that would be enqueued, a line of JSON each, and connects to nothing; ids are empty."""

    chunk_size = 1

    def __init__(self, settings: Settings) -> None:
        self._max_event_bytes = settings.queue.max_event_bytes

    def receipts(self, ids: Sequence[str], *, within_seconds: float = 0.0) -> list[Receipt | None]:  # noqa: ARG002 - nothing is asked
        """Return that there are none."""
        return [None for _ in ids]

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def _sender(self, *, receipts: bool) -> Callable[[list[Given]], list[Outcome]]:  # noqa: ARG002 - no event is enqueued
        return partial(send_valid, send=lambda events: map(self._print, events))

    def _print(self, event: DeploymentEvent) -> Outcome:
        body = event.body()
        if len(body) > self._max_event_bytes:
            return oversize(len(body), self._max_event_bytes)
        typer.echo(to_json({"event": from_json(body), **event.envelope}).decode())
        return ""
