"""`relay report`: enqueue one event, or a stream of JSON lines."""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from relay.errors import ConfigurationError, InvalidEvent, QueueFull, QueueUnavailable
from relay.event import DeploymentEvent
from relay.producer import Producer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

#: What a file of events may be called; an image's name never ends like this without a digest.
FILE_SUFFIXES = {".json", ".jsonl", ".ndjson", ".txt"}

#: Bytes of a line that are read at most; a longer one is refused, and skipped to its end.
MAX_LINE_BYTES = 1_048_576


def report(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE|FILE|-", help="An image by digest, a JSON lines file, or - .")
    ],
    *,
    environment: Annotated[str | None, typer.Option("--environment", "-e", help="Where it runs now.")] = None,
    name: Annotated[str | None, typer.Option(help="Tells containers of one repository apart.")] = None,
    platform: Annotated[
        str | None, typer.Option(metavar="OS/ARCH[/VARIANT]", help="Default: by environment.")
    ] = None,
    event_id: Annotated[
        str | None, typer.Option("--id", help="Idempotency key: reported again, it counts once.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="The cluster or pipeline that reports.")] = None,
    time: Annotated[
        str | None, typer.Option(help="When it was deployed (RFC 3339); leave it out if unknown.")
    ] = None,
    spool: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where events wait on disk while Redis is away (relay spool).")
    ] = None,
) -> None:
    """Enqueue one deployment event and print its id, or enqueue a stream of JSON lines.

    A line holds the reporting API's JSON body, and optionally id, source and time beside image. A bad line is named
    with its number; the good ones go through. Of a stream no ids are printed.

    Exit codes: 0 done, 1 something was refused, 2 usage, 69 Redis not reachable, 75 the queue or Redis is full (try
    again).

    \b
    Examples:
      relay report ghcr.io/acme/api@sha256:… --environment production
      relay report nginx@sha256:… -e staging --name sidecar --platform linux/arm64
      relay report deployments.jsonl
      cat deployments.jsonl | relay report -
    """  # noqa: D301 - \b keeps typer from joining the lines
    with Producer(spool=spool) as producer, _telling_spooled(producer):
        if image == "-" or _is_file(image):
            if environment or name or platform or event_id or source or time:
                raise ConfigurationError("options describe a single image: each line of a stream has its own fields")
            sys.exit(_report_stream(producer, image))
        typer.echo(
            producer.report(
                image, environment=environment, name=name, platform=platform, id=event_id, source=source, time=time
            )
        )


@contextmanager
def _telling_spooled(producer: Producer) -> Iterator[None]:
    """Say at the end, whatever it is, how many events wait on disk instead."""
    try:
        yield
    finally:
        if producer.spooled:
            typer.echo(f"{producer.spooled} spooled; sent by the next report, or by `relay spool flush`", err=True)


def _is_file(image: str) -> bool:
    """Tell a file from an image; what is meant as a file and is none is said, not taken for an image."""
    if "@" in image:
        return False
    path = Path(image)
    if path.is_dir() or (path.suffix in FILE_SUFFIXES and not path.is_file()):
        raise ConfigurationError(f"{image} is {'a directory' if path.is_dir() else 'no file'}")
    return path.is_file()


def _report_stream(producer: Producer, image: str) -> int:
    if image == "-":
        return _report_lines(producer, sys.stdin.buffer, size=None)
    with Path(image).open("rb") as lines:
        return _report_lines(producer, lines, size=Path(image).stat().st_size)


def _report_lines(producer: Producer, lines: BinaryIO, *, size: int | None) -> int:
    """Enqueue the good lines, name the bad ones, and return the exit code."""
    refused = 0
    enqueued = 0

    def refuse(message: str) -> None:
        nonlocal refused
        refused += 1
        typer.echo(message, err=True)

    with _progress(size) as advance:
        try:
            for _ in producer.report_stream(_events(lines, refuse, advance)):
                enqueued += 1
        except (QueueFull, QueueUnavailable) as error:
            typer.echo(f"{enqueued} enqueued before this; report the rest again", err=True)
            raise error from None
    typer.echo(f"{enqueued} enqueued, {refused} refused", err=True)
    return 1 if refused else 0


def _events(
    lines: BinaryIO, refuse: Callable[[str], None], advance: Callable[[int], Any]
) -> Iterator[DeploymentEvent]:
    number = 0
    while line := lines.readline(MAX_LINE_BYTES + 1):
        number += 1
        advance(len(line))
        if len(line) > MAX_LINE_BYTES:
            refuse(f"line {number}: longer than {MAX_LINE_BYTES} bytes")
            _skip_to_line_end(lines, line)
        elif line.strip():
            try:
                yield DeploymentEvent.parse(line)
            except InvalidEvent as error:
                refuse(f"line {number}: {error}")


def _skip_to_line_end(lines: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = lines.readline(MAX_LINE_BYTES)


def _progress(size: int | None) -> AbstractContextManager[Callable[[int], Any]]:
    """Draw a bar on a terminal, and nothing anywhere else."""
    if size is None or not sys.stderr.isatty():
        return nullcontext(lambda _: None)
    return _bar(size)


def _bar(size: int) -> AbstractContextManager[Callable[[int], Any]]:
    from relay.cli.progress import bytes_bar  # noqa: PLC0415 - rich is for terminals only

    return bytes_bar(size)
