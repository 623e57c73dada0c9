"""Fixtures of unit tests about settings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the relay's variables of the environment that runs the tests."""
    for name in list(os.environ):
        if name.upper().startswith(("RELAY_", "ATOMIST_", "CLUSTER_NAME", "CELERY_")):
            monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that writes the file that RELAY_CONFIG names."""

    def write(text: str) -> Path:
        path = tmp_path / "relay.toml"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setenv("RELAY_CONFIG", str(path))
        return path

    return write
