"""What a delivery run did, for its log line and its task's result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Environments that are named; of more only the number is.
NAMED = 3


@dataclass(slots=True)
class DeliveryReport:
    """The totals of one run.

    `health` is the state for which the destination let nothing more be sent, "" for none. `to_deliver` are the
    environments that need another run now.
    """

    environments: Sequence[str] = ()
    delivered: int = 0
    retrying: int = 0
    dead: int = 0
    health: str = ""
    leases_lost: int = 0
    to_deliver: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        names = self.environments
        where = ", ".join(names) if len(names) <= NAMED else f"{len(names)} environments"
        parts = [f"{self.delivered} delivered"]
        parts += [f"{n} {word}" for n, word in ((self.retrying, "retrying"), (self.dead, "dead")) if n]
        parts += [f"health: {self.health}"] if self.health else []
        parts += [f"{self.leases_lost} leases lost"] if self.leases_lost else []
        return f"{where}: {', '.join(parts)} in {self.seconds:.1f} s"
