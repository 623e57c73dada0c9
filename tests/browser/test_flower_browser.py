"""Flower's pages, as a person sees them in a browser."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect
from rig import TIMERS, TOKEN, Estate, wait_for

from relay import DeploymentEvent, Producer
from relay.connections.clients import connect
from relay.processes.stack import Stack
from relay.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

LOGIN = {"username": "operator", "password": "password-of-the-tests"}

#: A page, a hold, a start: on a loaded machine.
SECONDS = 60


@pytest.fixture
def estate(tmp_path: Path) -> Iterator[Estate]:
    with Sandbox(token=TOKEN) as api:
        environment = {**TIMERS, "RELAY_API_TOKEN": TOKEN, "RELAY_API_URL": api.url}
        with (
            Stack(tmp_path, api_url=api.url, environment=environment) as stack,
            connect(stack.settings.redis) as client,
        ):
            stack.start_worker("worker", concurrency=2)
            stack.start_flower(0, basic_auth=":".join(LOGIN.values()))
            yield Estate(stack, client, api)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context(http_credentials=LOGIN, viewport={"width": 1600, "height": 1200}) as context:
        page = context.new_page()
        page.set_default_timeout(SECONDS * 1000)
        yield page


def report(estate: Estate, version: str, environment: str) -> None:
    with Producer(estate.stack.redis_url) as producer:
        producer.report_many(
            DeploymentEvent.of(
                f"ghcr.io/acme/app-{n}@sha256:{sha256(f'{version} {n}'.encode()).hexdigest()}",
                environment=environment,
            )
            for n in range(40)
        )


def test_the_tasks_page_distinguishes_an_outage_from_a_success(estate: Estate, page: Page, tmp_path: Path) -> None:
    estate.api.faults = [{"kind": "status", "status": 503}]
    report(estate, "one", "production")
    url = estate.stack.flower_url

    def shows(name: str, where: str, state: str, what: str) -> bool:
        """Look for such a row; the page shows what there was when it was loaded."""
        page.goto(f"{url}/tasks")
        rows = page.locator("#tasks-table tbody tr")
        expect(rows.first).to_be_visible()
        return any(all(part in row for part in (name, where, state, what)) for row in rows.all_inner_texts())

    wait_for(
        lambda: shows("relay.deliver", "production", "RETRY", "unavailable (HTTP 503)"),
        SECONDS,
        lambda: page.inner_text("body"),
    )
    page.screenshot(path=tmp_path / "flower-outage.png")

    estate.api.faults = []
    wait_for(lambda: not estate.counters().waiting, SECONDS)
    wait_for(
        lambda: shows("relay.deliver", "production", "SUCCESS", " delivered in "),
        SECONDS,
        lambda: page.inner_text("body"),
    )
    assert "FAILURE" not in page.inner_text("#tasks-table")
    assert TOKEN not in page.content()
    page.screenshot(path=tmp_path / "flower-success.png")

    page.locator("#tasks-table tbody tr", has_text="RETRY").first.locator("a[href^='/task/']").click()
    expect(page.get_by_text("unavailable (HTTP 503)").first).to_be_visible()
    page.goto(f"{url}/broker")
    expect(page.get_by_role("cell", name="relay.deliver", exact=True)).to_be_visible()
    assert "relay.intake" in page.inner_text("body")
