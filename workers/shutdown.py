"""Whether this process has been asked to stop. A run then finishes what is in flight and hands back the rest."""

from __future__ import annotations

_stopping = False  # not an Event: an Event has a lock, and a signal handler may interrupt the thread that holds it


def is_stopping() -> bool:
    """Return whether this process has been asked to stop."""
    return _stopping


def request_stop() -> None:
    """Ask this process to stop. Safe in a signal handler."""
    global _stopping  # noqa: PLW0603 - a process stops once
    _stopping = True
