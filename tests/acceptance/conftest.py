"""The whole relay as real processes: see rig.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from rig import TIMERS, TOKEN, Estate

from relay.connections.clients import connect
from relay.processes.stack import Stack
from relay.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token=TOKEN) as sandbox:
        yield sandbox


@pytest.fixture
def estate(api: Sandbox, tmp_path: Path) -> Iterator[Estate]:
    """A relay without workers: a test starts those it wants."""
    environment = {**TIMERS, "RELAY_API_TOKEN": TOKEN, "RELAY_API_URL": api.url}
    with Stack(tmp_path, api_url=api.url, environment=environment) as stack, connect(stack.settings.redis) as client:
        yield Estate(stack, client, api)
