"""The side that delivers: `celery -A workers worker`."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Make Celery's application when Celery asks, so that the pure parts import without a configuration."""
    if name == "celery":
        from workers.scheduling.app import make_app  # noqa: PLC0415 - the point is to import it late

        globals()["celery"] = app = make_app()
        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
