"""Processor time of a session and of the whole machine, from /proc (Linux only)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_PROC = Path("/proc")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

#: Positions in /proc/<pid>/stat behind the command's name, and in the first line of /proc/stat.
_SESSION = 3
_USED = slice(11, 15)  # its own in user mode and in the kernel, and that of its ended children
_BUSY = (1, 2, 3, 6, 7)  # user, nice, system, irq, softirq; neither idle nor iowait nor steal


def of_session(leader: int) -> float:
    """Return the seconds that a session's processes have used, their ended children included."""
    return sum(_ticks(process, leader) for process in _PROC.glob("[0-9]*")) / _TICKS_PER_SECOND


def of_machine() -> float:
    """Return the seconds that all processors were busy since the start of the machine."""
    fields = (_PROC / "stat").read_text().partition("\n")[0].split()
    return sum(int(fields[position]) for position in _BUSY) / _TICKS_PER_SECOND


def _ticks(process: Path, leader: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        if int(fields[_SESSION]) == leader:
            return sum(map(int, fields[_USED]))
    return 0
