"""The steps of `relay report`: send one event or a file of events, and print their outcomes."""

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
from relay.cli.wait import UNKNOWN, WAITING, WINDOW, PendingReceipts, meaning
from relay.errors import GatewayRefused, InvalidEvent, QueueFull, QueueUnavailable
from relay.producer.base import id_or_raise
from relay.queue.receipts import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from relay.cli.jsonl import Line
    from relay.events.event import DeploymentEvent
    from relay.producer.base import BaseProducer, Outcome
    from relay.producer.ci import Origin


@dataclass(kw_only=True)
class _Progress:
    """How far the lines of a file have got."""

    enqueued: int = 0
    refused: int = 0
    #: Numbers of the lines that are sent and whose outcome is not known yet, in their order.
    in_flight: deque[int] = field(default_factory=deque)
    last_line: int = 0
    is_at_end: bool = False

    def refuse(self, number: int, fault: InvalidEvent) -> None:
        """Count and print a bad line."""
        self.refused += 1
        typer.echo(f"line {number}: {fault}", err=True)

    def fail(self, enqueued: int) -> None:
        """Print how far it got when an error ends it; the first `enqueued` of the lines in flight are enqueued."""
        line = next(islice(self.in_flight, enqueued, None), None)
        rest = "the rest again" if line is None else f"again from line {line} on"
        typer.echo(f"{self.enqueued + enqueued} enqueued before this; report {rest}", err=True)

    def stop(self, interrupted: Interrupted) -> None:
        """Print how far it got when a signal ends it: every line that was read and is not in flight is done."""
        line = next(iter(self.in_flight), self.last_line + 1)
        rest = f"report again from line {line} on"
        if self.is_at_end and not self.in_flight:
            rest = "all lines were read, and the relay goes on with what is enqueued"
        counts = f"{self.enqueued} enqueued, {self.refused} refused"
        typer.echo(f"stopped by {interrupted.name}: {counts}; {rest}", err=True)


@dataclass(frozen=True, kw_only=True)
class Reporter:
    """One call of `relay report`."""

    producer: BaseProducer
    #: The pipeline's step that runs it, if any.
    origin: Origin | None
    #: The events whose outcome is waited for; None without `--wait`.
    pending: PendingReceipts | None
    is_dry_run: bool = False

    def report_one(self, event: DeploymentEvent) -> int:
        """Report an event, print its id, and return the exit code."""
        [outcome] = self.producer.report_many([self._completed(event)], receipts=self.pending is not None)
        event_id = id_or_raise(outcome)
        if event_id:
            typer.echo(event_id)
        if self.pending is None:
            return 0
        self.pending.add(event_id)
        self.pending.wait()
        for status in self.pending.counts:
            if status != Status.DEAD:  # which is printed already
                typer.echo(meaning(status, self.pending.last), err=True)
        return self._exit_code(refused=0)

    def report_file(self, image: str) -> int:
        """Report the good lines of a file or of standard input, print the bad ones, and return the exit code."""
        progress = _Progress()
        with open_lines(image) as file, _bar(image) as advance, Interrupts() as interrupts:
            events = self._events(read_lines(file, advance, interrupts.interruptible), progress)
            try:
                for outcome in self.producer.report_stream(
                    events, receipts=self.pending is not None, on_error=interrupts.wake
                ):
                    self._note(outcome, progress, interrupts)
                if self.pending is not None:
                    with interrupts.interruptible():
                        self.pending.wait()
            except Interrupted as interrupted:
                progress.stop(interrupted)
                return interrupted.exit_code
            except (QueueFull, QueueUnavailable, GatewayRefused) as error:
                progress.fail(0 if isinstance(error, GatewayRefused) else len(error.enqueued))
                raise error from None
        self._sum_up(progress)
        return self._exit_code(progress.refused)

    def _events(self, lines: Iterable[Line], progress: _Progress) -> Iterator[DeploymentEvent]:
        """Yield the good lines' events, and print the bad ones."""
        for number, event in lines:
            progress.last_line = number
            if isinstance(event, InvalidEvent):
                progress.refuse(number, event)
            else:
                progress.in_flight.append(number)
                yield self._completed(event, number)
        progress.is_at_end = True

    def _note(self, outcome: Outcome, progress: _Progress, interrupts: Interrupts) -> None:
        """Record the outcome of the line that was sent first; wait while too many events are pending."""
        number = progress.in_flight.popleft()
        if isinstance(outcome, InvalidEvent):
            progress.refuse(number, outcome)
            return
        progress.enqueued += 1
        if self.pending is not None:
            self.pending.add(outcome, f"line {number}: ")
            if self.pending.are_full:
                with interrupts.interruptible():
                    self.pending.wait(at_most=WINDOW // 2)

    def _completed(self, event: DeploymentEvent, line: int = 0) -> DeploymentEvent:
        """Fill in the pipeline's source and id, and the id that a receipt needs."""
        if self.origin is not None:
            event = self.origin.credit(event, line)
        if self.pending is not None and not event.id:
            event = event.model_copy(update={"id": uuid.uuid4().hex})
        return event

    def _sum_up(self, progress: _Progress) -> None:
        counts = self.pending.counts if self.pending is not None else {}
        done = f"{progress.enqueued} {'valid' if self.is_dry_run else 'enqueued'}"
        outcomes = [f"{count} {status}" for status, count in counts.items()]
        typer.echo(", ".join([done, f"{progress.refused} refused", *outcomes]), err=True)

    def _exit_code(self, refused: int) -> int:
        counts = self.pending.counts if self.pending is not None else {}
        if self.pending is not None and self.pending.unreachable:
            typer.echo(self.pending.unreachable, err=True)
        if refused or counts.get(Status.DEAD):
            return EX_REFUSED
        return EX_TEMPFAIL if counts.get(WAITING) or counts.get(UNKNOWN) else 0


def _bar(image: str) -> AbstractContextManager[Callable[[int], Any]]:
    """Draw a progress bar if standard error is a terminal."""
    if image == "-" or not sys.stderr.isatty():
        return nullcontext(lambda _: None)
    from relay.cli.progress import bytes_bar  # noqa: PLC0415 - rich is for terminals only

    return bytes_bar(Path(image).stat().st_size)
