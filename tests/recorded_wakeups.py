"""A port for wake-ups that sends nothing and records what was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class RecordedWakeups:
    def __init__(self) -> None:
        self.intake = 0
        self.environments: list[str] = []

    def wake_intake(self) -> None:
        self.intake += 1

    def wake_delivery(self, environments: Sequence[str]) -> None:
        self.environments += environments

    def clear(self) -> None:
        self.intake, self.environments = 0, []
