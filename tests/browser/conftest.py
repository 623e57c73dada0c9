"""A real Chromium before a real relay: gateway, Redis, worker and sandbox as processes of their own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import OPERATOR_TOKEN, PATIENCE_MILLISECONDS
from rig import TIMERS, TOKEN, Estate

from relay.connections.clients import connect
from relay.processes.stack import Stack
from relay.sandbox import Sandbox

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, BrowserContext, Page

#: Where the screenshots go that people look at; without it, into the test's own directory.
SCREENSHOTS = "RELAY_SCREENSHOTS"

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on PATH: install Debian's chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    """What pages complained of, a policy that was broken among it; a test that expects one takes it out."""
    return []


@pytest.fixture
def open_page(browser: Browser, complaints: list[str]) -> Iterator[Callable[..., Page]]:
    """Open pages in contexts of their own; what a page complains of fails the test."""
    contexts: list[BrowserContext] = []

    def open_one(url: str, **options: object) -> Page:
        context = browser.new_context(base_url=url, **options)  # type: ignore[arg-type]
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MILLISECONDS)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    directory = Path(os.environ.get(SCREENSHOTS) or tmp_path / "screenshots")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token=TOKEN) as sandbox:
        yield sandbox


@pytest.fixture
def estate(api: Sandbox, tmp_path: Path) -> Iterator[Estate]:
    """A relay with a gateway, without workers: a test starts those it wants."""
    environment = {
        **TIMERS,
        "RELAY_API_TOKEN": TOKEN,
        "RELAY_API_URL": api.url,
        "RELAY_GATEWAY__OPERATOR_TOKEN": OPERATOR_TOKEN,
    }
    with Stack(tmp_path, api_url=api.url, environment=environment) as stack, connect(stack.settings.redis) as client:
        stack.start_gateway(0)
        yield Estate(stack, client, api)
