"""How does a message name many? The first few, and how many more."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: As many as one reads at a glance.
NAMED = 3


def some_of(names: Sequence[object]) -> str:
    """Return "a, b, c and 4 more"; all of them if there are no more than `NAMED`."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more
