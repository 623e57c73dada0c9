"""Lists in messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Items named before the rest are counted.
NAMED = 3


def some_of(names: Sequence[object]) -> str:
    """Return "a, b, c and 4 more": the first `NAMED` items and a count of the rest."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more
