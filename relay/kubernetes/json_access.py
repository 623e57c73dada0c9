"""Access to JSON of any shape by path, without exceptions. Pure.

A value of another type than the one asked for counts as absent: a client may send a list or null in place of a map.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def part(given: object, *path: str) -> Mapping[str, Any]:
    """Return the map at the path, or an empty one."""
    found = _at(given, path)
    return found if isinstance(found, dict) else {}


def text(given: object, *path: str) -> str:
    """Return the text at the path, or ""."""
    found = _at(given, path)
    return found if isinstance(found, str) else ""


def each(given: object, *path: str) -> Iterator[Mapping[str, Any]]:
    """Yield the maps of the list at the path."""
    found = _at(given, path)
    if isinstance(found, list):
        yield from (item for item in found if isinstance(item, dict))


def texts(given: object, *path: str) -> tuple[str, ...]:
    """Return the texts of the list at the path."""
    found = _at(given, path)
    return tuple(item for item in found if isinstance(item, str)) if isinstance(found, list) else ()


def labels(given: object, *path: str) -> Mapping[str, str]:
    """Return the texts of the map at the path by their names."""
    return {key: value for key, value in part(given, *path).items() if isinstance(value, str)}


def moment(given: object, *path: str) -> datetime | None:
    """Return the time at the path in UTC, if it is one."""
    try:
        found = datetime.fromisoformat(text(given, *path))
        return found.astimezone(UTC) if found.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _at(given: object, path: tuple[str, ...]) -> object:
    for key in path:
        if not isinstance(given, dict):
            return None
        given = given.get(key)
    return given
