"""Sends events on their way, and says what becomes of them: the steps of `relay report`."""

from __future__ import annotations

import sys
import uuid
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from relay.cli import EX_REFUSED, EX_TEMPFAIL
from relay.cli.interrupts import Interrupted, Interrupts
from relay.cli.jsonl import open_lines, read_lines
from relay.cli.wait import UNKNOWN, WAITING, WINDOW, Fates, meaning
from relay.errors import GatewayRefused, InvalidEvent, QueueFull, QueueUnavailable
from relay.queue.receipts import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from relay.cli.backends import Way
    from relay.cli.jsonl import Line
    from relay.events.event import DeploymentEvent
    from relay.producer.ci import Origin


@dataclass(kw_only=True)
class _Tally:
    """What came of a file's lines so far."""

    enqueued: int = 0
    refused: int = 0
    #: Numbers of the lines that are sent and whose outcome is not known yet, in their order.
    under_way: deque[int] = field(default_factory=deque)
    #: Number of the last line that was read.
    last_line: int = 0
    is_at_end: bool = False

    def refuse(self, number: int, why: InvalidEvent) -> None:
        """Count and name a bad line."""
        self.refused += 1
        typer.echo(f"line {number}: {why}", err=True)

    def interrupt(self, taken: int) -> None:
        """Say how far it came when an error ends it, and so many of the lines under way are taken: the first ones."""
        line = next(islice(self.under_way, taken, None), None)
        rest = "the rest again" if line is None else f"again from line {line} on"
        typer.echo(f"{self.enqueued + taken} enqueued before this; report {rest}", err=True)

    def stop(self, interrupted: Interrupted) -> None:
        """Print how far it came when a signal ends it: every line that was read and is not under way is done."""
        line = next(iter(self.under_way), self.last_line + 1)
        rest = f"report again from line {line} on"
        if self.is_at_end and not self.under_way:
            rest = "all lines were read, and the relay goes on with what is enqueued"
        counts = f"{self.enqueued} enqueued, {self.refused} refused"
        typer.echo(f"stopped by {interrupted.name}: {counts}; {rest}", err=True)


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
                typer.echo(meaning(fate, self.fates.last), err=True)
        return self._exit_code(refused=0)

    def report_file(self, image: str) -> int:
        """Report the good lines of a file or of standard input, name the bad ones, and return the exit code."""
        tally = _Tally()
        with open_lines(image) as file, _progress(image) as advance, Interrupts() as interrupts:
            events = self._events(read_lines(file, advance, interrupts.interruptible), tally)
            try:
                self.way.on_error = interrupts.wake
                for outcome in self.way.send(events, receipts=self.fates is not None):
                    self._note(outcome, tally, interrupts)
                if self.fates is not None:
                    with interrupts.interruptible():
                        self.fates.wait()
            except Interrupted as interrupted:
                tally.stop(interrupted)
                return interrupted.exit_code
            except (QueueFull, QueueUnavailable, GatewayRefused) as error:
                tally.interrupt(0 if isinstance(error, GatewayRefused) else len(error.enqueued))
                raise error from None
        self._sum_up(tally)
        return self._exit_code(tally.refused)

    def _events(self, lines: Iterable[Line], tally: _Tally) -> Iterator[DeploymentEvent]:
        """Give the good lines' events, and name the bad ones."""
        for number, event in lines:
            tally.last_line = number
            if isinstance(event, InvalidEvent):
                tally.refuse(number, event)
            else:
                tally.under_way.append(number)
                yield self._signed(event, number)
        tally.is_at_end = True

    def _note(self, outcome: str | InvalidEvent, tally: _Tally, interrupts: Interrupts) -> None:
        """Note what came of the line that was sent longest ago; if too many are waited for, wait."""
        number = tally.under_way.popleft()
        if isinstance(outcome, InvalidEvent):
            tally.refuse(number, outcome)
            return
        tally.enqueued += 1
        if self.fates is not None:
            self.fates.follow(outcome, f"line {number}: ")
            if self.fates.are_many:
                with interrupts.interruptible():
                    self.fates.wait(at_most=WINDOW // 2)

    def _signed(self, event: DeploymentEvent, line: int = 0) -> DeploymentEvent:
        """Fill in what the pipeline knows, and the id that waiting needs."""
        if self.origin is not None:
            event = self.origin.credit(event, line)
        if self.fates is not None and not event.id:
            event = event.model_copy(update={"id": uuid.uuid4().hex})
        return event

    def _sum_up(self, tally: _Tally) -> None:
        counts = self.fates.counts if self.fates is not None else {}
        fates = [f"{count} {fate}" for fate, count in counts.items()]
        typer.echo(", ".join([f"{tally.enqueued} {self.way.done}", f"{tally.refused} refused", *fates]), err=True)

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
