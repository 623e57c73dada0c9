"""The meaning of a gateway's answers for a producer."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest

from relay.errors import GatewayRefused, InvalidEvent, QueueFull, QueueUnavailable
from relay.events.event import DeploymentEvent
from relay.producer import gateway_requests
from relay.producer.gateway_requests import Answer, Reported, TryAgain
from relay.queue.receipts import Receipt, Status

IMAGE = f"ghcr.io/acme/shop@sha256:{sha256(b'a').hexdigest()}"

#: Every status that HTTP knows and a server may answer a request with at its end.
STATUSES = [*range(200, 210), 226, *range(300, 309), *range(400, 419), *range(421, 427), 428, 429, 431, 451,
            *range(500, 509), 510, 511, 599]  # fmt: skip


def answer(status: int, document: Any = None, **headers: str) -> Answer:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Answer(
        status=status, headers={name.replace("_", "-"): each for name, each in headers.items()}, content=content
    )


@pytest.mark.parametrize("status", STATUSES)
def test_each_status_has_a_meaning_without_a_gateways_document(status: int) -> None:
    """In the answer of a proxy, a portal or another server no event is enqueued."""
    again = {408: QueueUnavailable, 425: QueueUnavailable, 429: QueueFull}
    again |= dict.fromkeys(range(500, 600), QueueUnavailable)
    if status not in again:
        with pytest.raises(GatewayRefused, match=f"HTTP {status}"):
            gateway_requests.read_report(answer(status, b"<html>"), 1)
        return
    read = gateway_requests.read_report(answer(status, b"<html>"), 1)
    assert isinstance(read, TryAgain)
    assert type(read.error) is again[status]
    assert read.outcomes == (None,)


def test_each_event_of_a_request_has_its_outcome() -> None:
    fault = {"index": 1, "field": "environment.name", "reason": "not for this token"}
    read = gateway_requests.read_report(answer(202, {"ids": ["a", None, "c"], "errors": [fault]}), 3)
    assert isinstance(read, Reported)
    first, second, third = read.outcomes
    assert (first, third) == ("a", "c")
    assert isinstance(second, InvalidEvent)
    assert (second.field, second.reason) == ("environment.name", "not for this token")


def test_a_422_refuses_each_event() -> None:
    document = {"error": "none", "field": "", "ids": [None], "errors": [{"index": 0, "field": "x", "reason": "y"}]}
    read = gateway_requests.read_report(answer(422, document), 1)
    assert isinstance(read, Reported)
    assert isinstance(read.outcomes[0], InvalidEvent)


def test_events_that_a_full_gateway_took_are_enqueued() -> None:
    document = {"error": "the queue is full", "ids": ["a", None, None], "errors": [{"index": 2, "reason": "bad"}]}
    read = gateway_requests.read_report(answer(429, document, retry_after="7"), 3)
    assert isinstance(read, TryAgain)
    assert isinstance(read.error, QueueFull)
    assert "the queue is full" in str(read.error)
    assert read.after_seconds == 7
    assert read.outcomes[:2] == ("a", None)
    assert isinstance(read.outcomes[2], InvalidEvent)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "x",
        {},
        {"ids": "ab"},
        {"ids": ["a"]},
        {"ids": ["a", 7]},
        {"ids": ["a", None], "errors": [None, {"index": 9}]},
    ],
)
def test_a_202_without_each_outcome_is_refused(document: Any) -> None:
    with pytest.raises(GatewayRefused, match="check its URL"):
        gateway_requests.read_report(answer(202, document), 2)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_says_what_to_set(status: int) -> None:
    with pytest.raises(GatewayRefused, match=r"the bearer token is wrong.*RELAY_GATEWAY_TOKEN"):
        gateway_requests.read_report(answer(status, {"error": "the bearer token is wrong", "field": ""}), 1)


@pytest.mark.parametrize(
    ("given", "seconds"), [("3", 3), ("0", 0), ("", 0), ("-1", 0), ("soon", 0), ("9" * 400, 0), ("٣", 0)]
)
def test_retry_after_is_seconds(given: str, seconds: float) -> None:
    read = gateway_requests.read_report(answer(503, {}, retry_after=given), 1)
    assert isinstance(read, TryAgain)
    assert read.after_seconds == seconds


def test_another_programs_text_stays_on_one_line() -> None:
    with pytest.raises(GatewayRefused) as refused:
        gateway_requests.read_report(answer(400, {"error": "a\nb\x1b[2J" + "x" * 1000}), 1)
    assert "a?b?[2Jxx" in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_receipt_is_read_as_the_gateway_writes_it() -> None:
    since = "2026-01-31T12:00:00.250+00:00"
    document = {"id": "a", "status": "dead", "since": since, "reason": "refused", "detail": "HTTP 400"}
    read = gateway_requests.read_receipt(answer(200, document))
    assert read == Receipt(status=Status.DEAD, at=1_769_860_800_250, reason="refused", detail="HTTP 400")
    assert gateway_requests.read_receipt(answer(404, {"error": "no receipt", "field": ""})) is None
    assert isinstance(gateway_requests.read_receipt(answer(503, {})), TryAgain)


@pytest.mark.parametrize(
    ("status", "document"), [(404, b"<html>"), (200, {}), (200, {"status": "gone", "since": "2026-01-31"}), (401, {})]
)
def test_other_documents_are_no_receipt(status: int, document: Any) -> None:
    with pytest.raises(GatewayRefused):
        gateway_requests.read_receipt(answer(status, document))


@pytest.mark.parametrize(
    "url", ["https://r.example.com", "https://r.example.com/", "https://r.example.com/v1/deployments/"]
)
def test_urls(url: str) -> None:
    assert gateway_requests.reports_url(url) == "https://r.example.com/"
    assert gateway_requests.receipt_url(url, "a/b ?#") == "https://r.example.com/events/a%2Fb%20%3F%23"
    assert gateway_requests.reports_url("https://example.com/relay") == "https://example.com/relay/"


def test_a_line_is_the_event_again() -> None:
    event = DeploymentEvent.of(
        IMAGE, environment="production", platform="linux/arm64", id="a", source="é", time="2026-01-31T12:00:00Z"
    )
    assert DeploymentEvent.parse(gateway_requests.line_of(event)) == event
    assert b"\n" not in gateway_requests.line_of(event)


def test_requests_are_bounded_and_lose_no_line() -> None:
    lines = [b"x" * size for size in [10] * 1_001 + [600_000, 600_000, 2_000_000, 5]]
    requests = list(gateway_requests.requests_of(lines))
    assert [line for request in requests for line in request] == lines
    assert [len(request) for request in requests] == [1_000, 2, 1, 1, 1]
    assert list(gateway_requests.requests_of([])) == []
