"""`relay dead`: lists, shows, redrives, exports and drops dead letters."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, NoReturn

import typer
from redis.exceptions import RedisError

from relay.cli import EX_REFUSED, EX_TEMPFAIL
from relay.cli.dead_letters import as_json_line, json_line, plain_row, show_letter, show_table
from relay.cli.options import can_prompt, filled, positive_duration
from relay.cli.progress import counting_bar
from relay.cli.queue_client import open_queue
from relay.errors import ConfigurationError, LeaseLost
from relay.queue.dead_letters import EVERYTHING, Filters, Reason, count, drop, find, limited, walk
from relay.queue.redrive import LEASE_SECONDS, Redrive, redrive_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.cli.queue_client import QueueConnection
    from relay.queue.dead_letters import DeadLetter

#: Default number of dead letters of `list`.
LISTED = 50

dead = typer.Typer(
    name="dead",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="""Work with dead letters: events that could not be processed or delivered, each with its reason.

    Exit codes: 0 done, 1 something was refused or not found, 2 usage, 69 Redis not reachable, 75 try again.

    \b
    Examples:
      relay dead list --reason refused --newer-than 1d
      relay dead show 1750000000000-0
      relay dead redrive --environment 'prod-*' --dry-run
      relay dead export --output dead.jsonl
      relay dead drop --reason invalid --older-than 30d
    """,  # \b keeps typer from joining the lines
)


_Environment = Annotated[
    str | None,
    typer.Option(
        "--environment", "-e", parser=filled, metavar="GLOB", help="Only of environments whose name matches."
    ),
]
_Reasons = Annotated[
    list[Reason] | None,
    typer.Option("--reason", metavar="REASON", help=f"Only with this reason: {', '.join(Reason)}; may be repeated."),
]
_Image = Annotated[
    str | None,
    typer.Option(
        parser=filled, metavar="TEXT|GLOB", help="Only with this in the image reference; a glob matches all of it."
    ),
]
_OlderThan = Annotated[
    float | None,
    typer.Option(
        parser=positive_duration,
        metavar="DURATION",
        help="Only letters dead-lettered more than DURATION ago: 90s, 12h, 30d.",
    ),
]
_NewerThan = Annotated[
    float | None,
    typer.Option(parser=positive_duration, metavar="DURATION", help="Only letters dead-lettered within DURATION."),
]
_EventIds = Annotated[
    list[str] | None, typer.Option("--id", parser=filled, metavar="ID", help="Only of this event; may be repeated.")
]
_Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Maximum number, the oldest first.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation without a filter.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, as `export` writes it.")]


@dead.command("list")
def list_(
    *,
    environment: _Environment = None,
    reason: _Reasons = None,
    image: _Image = None,
    older_than: _OlderThan = None,
    newer_than: _NewerThan = None,
    event_id: _EventIds = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number, the newest.")] = LISTED,
    as_json: _Json = False,
) -> None:
    """Show the newest dead letters, the newest last.

    A table on a terminal. Piped, one line each with tabs between: letter, dead since, reason, status, attempts,
    environment, image, event id, detail.

    \b
    Examples:
      relay dead list
      relay dead list --reason exhausted --reason expired -e production
      relay dead list --image ghcr.io/acme/api --limit 500
      relay dead list --json | jq -r .event_id
    """  # noqa: D301 - \b keeps typer from joining the lines
    filters = _filters(environment, reason, image, (older_than, newer_than), event_id)
    with open_queue() as queue:
        total = count(queue.client, queue.keys)
        letters, scanned = _newest(queue, filters, limit)
    if as_json:
        for letter in letters:
            typer.echo(as_json_line(letter))
    elif sys.stdout.isatty():
        show_table(letters)
    else:
        for letter in letters:
            typer.echo(plain_row(letter))
    typer.echo(_listed(len(letters), total, max(0, total - scanned), filters), err=True)


@dead.command()
def show(
    ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Id of a letter, as `list` shows it, or of an event.")
    ],
    *,
    as_json: _Json = False,
) -> None:
    """Show single dead letters in full.

    \b
    Examples:
      relay dead show 1750000000000-0
      relay dead show job-7 --json
    """  # noqa: D301 - \b keeps typer from joining the lines
    missing = []
    with open_queue() as queue:
        for wanted in ids:
            found = 0
            for letter in _with_id(queue, wanted):
                found += 1
                if as_json:
                    typer.echo(as_json_line(letter))
                else:
                    show_letter(letter)
            if not found:
                missing.append(wanted)
    for wanted in missing:
        typer.echo(f"no dead letter {wanted}", err=True)
    if missing:
        raise typer.Exit(EX_REFUSED)


@dead.command()
def redrive(
    *,
    environment: _Environment = None,
    reason: _Reasons = None,
    image: _Image = None,
    older_than: _OlderThan = None,
    newer_than: _NewerThan = None,
    event_id: _EventIds = None,
    limit: _Limit = None,
    rate: Annotated[int | None, typer.Option(min=1, metavar="N", help="Maximum number per second.")] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Skip the stale check: deliver even if it undoes a newer deployment."),
    ] = False,
    dry_run: _DryRun = False,
    yes: _Yes = False,
) -> None:
    """Move dead letters back to the inbox, the oldest first.

    An event that would undo a newer deployment is stale, and one that was delivered since is a duplicate: neither is
    delivered, except with --force. Only letters that exist at the start are moved, so one that fails again is not
    redriven in a loop. A redrive that was stopped can be run again: each event is either a dead letter or in the
    inbox. Only one redrive runs at a time.

    Exit codes: 0 done, 1 not confirmed, 2 usage, 69 Redis not reachable, 75 try again (the queue is full, or another
    redrive is running).

    \b
    Examples:
      relay dead redrive --reason exhausted --newer-than 6h
      relay dead redrive -e production --rate 50
      relay dead redrive --id job-7 --force
      relay dead redrive --dry-run
    """  # noqa: D301 - \b keeps typer from joining the lines
    filters = _filters(environment, reason, image, (older_than, newer_than), event_id)
    with open_queue() as queue:
        if dry_run:
            _rehearse(queue, filters, limit, "redriven")
            return
        _confirm(queue, filters, "redrive", yes=yes)
        run = Redrive(queue.client, queue.keys, max_backlog=queue.settings.queue.max_backlog, force=force)
        if not run.acquire():
            _try_again(
                f"another redrive is running, or died less than {LEASE_SECONDS:g} s ago; wait until it is done"
            )
        _redrive(queue, run, filters, limit, rate)


@dead.command("drop")
def drop_(
    *,
    environment: _Environment = None,
    reason: _Reasons = None,
    image: _Image = None,
    older_than: _OlderThan = None,
    newer_than: _NewerThan = None,
    event_id: _EventIds = None,
    limit: _Limit = None,
    dry_run: _DryRun = False,
    yes: _Yes = False,
) -> None:
    """Delete dead letters; `export` them first if you may need them.

    Exit codes: 0 done, 1 not confirmed, 2 usage, 69 Redis not reachable.

    \b
    Examples:
      relay dead drop --reason invalid --older-than 30d
      relay dead drop --id job-7
    """  # noqa: D301 - \b keeps typer from joining the lines
    filters = _filters(environment, reason, image, (older_than, newer_than), event_id)
    with open_queue() as queue:
        if dry_run:
            _rehearse(queue, filters, limit, "dropped")
            return
        _confirm(queue, filters, "drop", yes=yes)
        dropped = 0
        with counting_bar(count(queue.client, queue.keys)) as update:
            for page, scanned in limited(walk(queue.client, queue.keys, filters), limit):
                dropped += drop(queue.client, queue.keys, page)
                update(scanned, f"{dropped:,} dropped")
    typer.echo(f"{dropped} dropped", err=True)


@dead.command()
def export(
    *,
    environment: _Environment = None,
    reason: _Reasons = None,
    image: _Image = None,
    older_than: _OlderThan = None,
    newer_than: _NewerThan = None,
    event_id: _EventIds = None,
    limit: _Limit = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", parser=filled, metavar="FILE", help="File to write; default: standard output."
        ),
    ] = None,
) -> None:
    """Write dead letters as JSON lines, the oldest first; nothing is changed.

    `fields` of a line are the event's fields in Redis, as pairs of name and value; a value that is not UTF-8 is
    {"base64": "..."}.

    \b
    Examples:
      relay dead export --output dead.jsonl
      relay dead export --reason invalid | jq .detail
    """  # noqa: D301 - \b keeps typer from joining the lines
    filters = _filters(environment, reason, image, (older_than, newer_than), event_id)
    written = 0
    with open_queue() as queue, _opened(Path(output) if output else None) as file:
        for page, _ in limited(walk(queue.client, queue.keys, filters), limit):
            file.writelines(json_line(letter) for letter in page)
            written += len(page)
        file.flush()
    typer.echo(f"{written} exported", err=True)


def _filters(
    environment: str | None,
    reasons: list[Reason] | None,
    image: str | None,
    ages: tuple[float | None, float | None],
    event_ids: list[str] | None,
) -> Filters:
    return Filters(
        environment=environment,
        reasons=frozenset(reasons or ()),
        image=image,
        older_than_seconds=ages[0],
        newer_than_seconds=ages[1],
        event_ids=frozenset(event_ids or ()),
    )


def _newest(queue: QueueConnection, filters: Filters, limit: int) -> tuple[list[DeadLetter], int]:
    """Return the newest matching dead letters, newest last, and the number of scanned ones."""
    found: list[DeadLetter] = []
    total = 0
    for page, scanned in limited(walk(queue.client, queue.keys, filters, newest_first=True), limit):
        found += page
        total = scanned
    return found[::-1], total


def _listed(shown: int, total: int, not_scanned: int, filters: Filters) -> str:
    if filters == EVERYTHING:
        return f"{shown} shown of {total} dead letters"
    has_age = filters.older_than_seconds is not None or filters.newer_than_seconds is not None
    rest = f"; {not_scanned} not scanned ({'by age, or ' if has_age else ''}beyond --limit)" if not_scanned else ""
    return f"{shown} shown of {total} dead letters{rest}"


def _with_id(queue: QueueConnection, wanted: str) -> Iterator[DeadLetter]:
    """Yield the dead letter with this id, or else those of the event with this id."""
    letter = find(queue.client, queue.keys, wanted)
    if letter is not None:
        yield letter
        return
    for page in walk(queue.client, queue.keys, Filters(event_ids=frozenset({wanted}))):
        yield from page.letters


def _rehearse(queue: QueueConnection, filters: Filters, limit: int | None, would_be: str) -> None:
    reasons: Counter[str] = Counter()
    with counting_bar(count(queue.client, queue.keys)) as update:
        for page, scanned in limited(walk(queue.client, queue.keys, filters), limit):
            reasons.update(letter.reason for letter in page)
            update(scanned, f"{reasons.total():,} match")
    parts = ", ".join(f"{reason} {number}" for reason, number in sorted(reasons.items()))
    typer.echo(f"{reasons.total()} would be {would_be}{f': {parts}' if parts else ''}")


def _confirm(queue: QueueConnection, filters: Filters, what: str, *, yes: bool) -> None:
    """Ask for confirmation if all dead letters are selected; without a terminal, require --yes."""
    if yes or filters != EVERYTHING:
        return
    if not can_prompt():
        raise ConfigurationError(f"to {what} all dead letters without a terminal, give --yes or a filter (--help)")
    typer.confirm(f"{what.capitalize()} all {count(queue.client, queue.keys)} dead letters?", abort=True, err=True)


def _redrive(queue: QueueConnection, run: Redrive, filters: Filters, limit: int | None, rate: int | None) -> None:
    moved, why = 0, ""
    try:
        with counting_bar(count(queue.client, queue.keys)) as update:
            for progress in redrive_all(run, filters, limit=limit, rate=rate):
                moved = progress.moved
                why = "the queue is full" if progress.is_full else ""
                update(progress.scanned, f"{moved:,} redriven")
    except LeaseLost:
        why = "another redrive has taken over"
    finally:
        typer.echo(f"{moved} redriven", err=True)
        with suppress(RedisError):  # the lease expires
            run.release()
    if why:
        _try_again(f"{why}; run it again later for the rest")


def _try_again(message: str) -> NoReturn:
    typer.echo(f"relay: {message}", err=True)
    raise typer.Exit(EX_TEMPFAIL)


@contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    """Open the output: a file, standard output, or a special file such as a pipe."""
    if output is None:
        yield sys.stdout.buffer
        return
    try:
        is_file = output.is_file() or not output.exists()
        with _replacing(output.resolve()) if is_file else output.open("wb") as file:
            yield file
    except OSError as error:
        raise ConfigurationError(f"{output}: {error.strerror or error}") from error


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file beside its path and rename it once it is complete; until then the old file stays."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            if path.exists():
                shutil.copymode(path, part)
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
