"""Sends events on their way, and says what becomes of them: the steps of `relay report`."""

from __future__ import annotations

import sys
import uuid
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from relay.cli import EX_REFUSED, EX_TEMPFAIL
from relay.cli.fates import MEANINGS, UNKNOWN, WAITING, WINDOW, Fates
from relay.cli.lines import open_lines, read_lines
from relay.errors import InvalidEvent, QueueFull, QueueUnavailable
from relay.event import DeploymentEvent
from relay.store.receipts import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from relay.cli.lines import Line
    from relay.cli.ways import Way
    from relay.pipeline import Origin

#: Lines that are sent together.
CHUNK = 500


@dataclass(frozen=True, kw_only=True)
class Reporter:
    """What one call of `relay report` works with."""

    way: Way
    #: The pipeline's step that runs it, if any.
    origin: Origin | None
    #: What became of the events, if that is waited for.
    fates: Fates | None

    def report_one(self, event: DeploymentEvent) -> int:
        """Report an event, print its id, and return the exit code."""
        [outcome] = self.way.send([self._signed(event)], receipts=self.fates is not None)
        if isinstance(outcome, InvalidEvent):
            raise outcome
        if outcome:
            typer.echo(outcome)
        if self.fates is None:
            return 0
        self.fates.follow(outcome)
        self.fates.wait()
        for fate in self.fates.counts:
            if fate != Status.DEAD:  # which has been told
                typer.echo(MEANINGS[fate], err=True)
        return self._exit_code(refused=0)

    def report_file(self, image: str) -> int:
        """Report the good lines of a file or of standard input, name the bad ones, and return the exit code."""
        enqueued = refused = 0
        with open_lines(image) as file, _progress(image) as advance:
            lines = read_lines(file, advance)
            while chunk := list(islice(lines, CHUNK)):
                try:
                    bad = self._report_chunk(chunk)
                except (QueueFull, QueueUnavailable) as error:
                    enqueued += len(error.enqueued)
                    typer.echo(f"{enqueued} enqueued before this; report the rest again", err=True)
                    raise error from None
                enqueued += len(chunk) - bad
                refused += bad
        if self.fates is not None:
            self.fates.wait()
        self._sum_up(enqueued, refused)
        return self._exit_code(refused)

    def _report_chunk(self, chunk: Sequence[Line]) -> int:
        """Report a chunk's good lines, and return how many others there were, which are named."""
        good = {line.number: line.event for line in chunk if isinstance(line.event, DeploymentEvent)}
        events = [self._signed(event, number) for number, event in good.items()]
        sent = self.way.send(events, receipts=self.fates is not None) if events else ()
        outcomes: dict[int, str | InvalidEvent] = dict(zip(good, sent, strict=True))
        bad = 0
        for line in chunk:
            outcome = outcomes.get(line.number, line.event)
            if isinstance(outcome, InvalidEvent):
                bad += 1
                typer.echo(f"line {line.number}: {outcome}", err=True)
            elif self.fates is not None:
                self.fates.follow(str(outcome), f"line {line.number}: ")
        if self.fates is not None:
            self.fates.wait(at_most=WINDOW - CHUNK)
        return bad

    def _signed(self, event: DeploymentEvent, line: int = 0) -> DeploymentEvent:
        """Fill in what the pipeline knows, and the id that waiting needs."""
        if self.origin is not None:
            event = self.origin.credit(event, line)
        if self.fates is not None and not event.id:
            event = event.model_copy(update={"id": uuid.uuid4().hex})
        return event

    def _sum_up(self, enqueued: int, refused: int) -> None:
        counts = self.fates.counts if self.fates is not None else {}
        parts = [
            f"{enqueued} {self.way.done}",
            f"{refused} refused",
            *(f"{count} {fate}" for fate, count in counts.items()),
        ]
        typer.echo(", ".join(parts), err=True)

    def _exit_code(self, refused: int) -> int:
        counts = self.fates.counts if self.fates is not None else {}
        if self.fates is not None and self.fates.unreachable:
            typer.echo(self.fates.unreachable, err=True)
        if refused or counts.get(Status.DEAD):
            return EX_REFUSED
        return EX_TEMPFAIL if counts.get(WAITING) or counts.get(UNKNOWN) else 0


def _progress(image: str) -> AbstractContextManager[Callable[[int], Any]]:
    """Draw a bar on a terminal, and nothing anywhere else."""
    if image == "-" or not sys.stderr.isatty():
        return nullcontext(lambda _: None)
    from relay.cli.progress import bytes_bar  # noqa: PLC0415 - rich is for terminals only

    return bytes_bar(Path(image).stat().st_size)
