"""Progress bars: over a file's bytes, and over a number of things."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def bytes_bar(size: int) -> Iterator[Callable[[int], None]]:
    """Draw a bar on standard error while in the context; call what it gives with bytes done."""
    with Progress(BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=size)
        yield lambda done: progress.advance(task, done)


@contextmanager
def counting_bar(total: int) -> Iterator[Callable[[int, str], None]]:
    """Draw a bar on standard error while in the context; call what it gives with how many are done, and a note."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda done, note: progress.update(task, completed=done, description=note)
