"""Progress bars on a terminal: over a file's bytes, and over a number of items. rich is imported only to draw."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def bytes_bar(size: int) -> Iterator[Callable[[int], None]]:
    """Draw a bar on standard error; the yielded function adds processed bytes."""
    from rich.console import Console  # noqa: PLC0415 - for drawing only
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn  # noqa: PLC0415 - the same

    with Progress(BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=size)
        yield lambda done: progress.advance(task, done)


@contextmanager
def counting_bar(total: int) -> Iterator[Callable[[int, str], object]]:
    """Draw a bar if standard error is a terminal; the yielded function sets the number of items done, and a note."""
    if not sys.stderr.isatty():
        yield lambda _done, _note: None
        return
    from rich.console import Console  # noqa: PLC0415 - for drawing only
    from rich.progress import (  # noqa: PLC0415 - the same
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda done, note: progress.update(task, completed=done, description=note)
