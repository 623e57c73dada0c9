"""The gateway does what its OpenAPI document says: schemathesis reads the one and tries the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from gateways import TOKEN, Running, running
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from relay.gateway import openapi
from relay.processes.embedded_redis import EmbeddedRedis

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Not every text is an image reference or a name, and a schema cannot say which is.
UNSAID = [positive_data_acceptance]

SCHEMA = schemathesis.openapi.from_dict(openapi.DOCUMENT)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Running]:
    with EmbeddedRedis(append_only=False) as embedded, running(embedded.url) as running_gateway:
        yield running_gateway


@schemathesis.serializer("application/x-ndjson")
def lines(_context: Any, value: Any) -> bytes:
    """Send what was made for lines: text, whatever it holds."""
    return str(value).encode(errors="replace")


@SCHEMA.parametrize()
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_gateway_keeps_to_its_document(case: Any, gateway: Running) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    case.call_and_validate(base_url=gateway.url, headers=headers, timeout=30, excluded_checks=UNSAID)
