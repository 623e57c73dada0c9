"""`relay forget`: deletes the state of instances that no longer run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from relay.cli import EX_TEMPFAIL
from relay.cli.options import Json, can_prompt, filled, name_or_id, positive_duration
from relay.cli.queue_client import open_queue
from relay.errors import ConfigurationError, InvalidImage
from relay.events.image import parse_image
from relay.queue import forgetting, inventory

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.cli.queue_client import QueueConnection
    from relay.queue.forgetting import Forgotten

#: Makes an image reference of a repository, for the parser.
_ANY_DIGEST = f"sha256:{'0' * 64}"


def instance_prefix(text: str) -> str:
    """Return the prefix of the selected instances' keys, from a repository, also with a platform and a name."""
    repository, *rest = filled(text).strip().split(" ", 2)
    try:
        repository = parse_image(f"{repository.partition('@')[0]}@{_ANY_DIGEST}").repository
    except InvalidImage as error:
        raise typer.BadParameter(f"{text}: {error}") from None
    return " ".join((repository, *rest, "")) if len(rest) < 2 else " ".join((repository, *rest))  # noqa: PLR2004 - all


def forget(
    environment: Annotated[str, typer.Argument(parser=name_or_id, metavar="ENV", help="Name of an environment.")],
    *,
    instance: Annotated[
        list[str] | None,
        typer.Option(
            "--instance",
            "-i",
            parser=instance_prefix,
            metavar="'REPOSITORY [PLATFORM [NAME]]'",
            help="Only this instance, or the instances of this repository; may be repeated.",
        ),
    ] = None,
    unseen_for: Annotated[
        float | None,
        typer.Option(
            parser=positive_duration, metavar="DURATION", help="Only instances not reported for DURATION: 12h, 30d."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Forget instances that no longer run: inventory and resync leave them out from then on.

    Nothing is sent to the destination, which keeps its data. An instance that is reported again is new, and is
    delivered. An instance with an event in the outbox is kept: run the command again when that is done. Without
    --instance and --unseen-for the environment and its counters are forgotten too, unless it is paused. Dead letters
    stay (`relay dead drop -e ENV`). Forgetting twice does no harm.

    Exit codes: 0 done, 1 not confirmed, 2 usage, 69 Redis not reachable, 75 some were kept (try again).

    \b
    Examples:
      relay forget pr-1234 --yes
      relay forget production --instance ghcr.io/acme/old-api
      relay forget production --instance 'ghcr.io/acme/api linux/arm64 sidecar'
      relay forget production --unseen-for 30d --dry-run
    """  # noqa: D301 - \b keeps typer from joining the lines
    prefixes = tuple(instance or ())

    def is_selected(key: str) -> bool:
        return not prefixes or any(
            key.startswith(prefix) if prefix.endswith(" ") else key == prefix for prefix in prefixes
        )

    with open_queue() as queue:
        total = inventory.count(queue.client, queue.keys, queue.destination, environment)
        seen_before = None if unseen_for is None else forgetting.now_ms(queue.client) - round(unseen_for * 1000)
        if total and not dry_run and not yes:
            _confirm(queue, environment, is_selected, seen_before)
        outbox = queue.keys.of_outbox(queue.destination, environment)
        done = forgetting.forget_some(
            queue.client, outbox, is_selected=is_selected, seen_before=seen_before, dry_run=dry_run
        )
        is_whole = not prefixes and unseen_for is None and not dry_run and not done.kept
        environment_forgotten = is_whole and forgetting.forget_environment(
            queue.client, queue.keys, outbox, forgetting.now_ms(queue.client) + 1
        )
    if as_json:
        outcome = {"environment": environment, "dry_run": dry_run, **done._asdict()}
        typer.echo(json.dumps({**outcome, "environment_forgotten": environment_forgotten}))
    else:
        typer.echo(_outcome(done, dry_run=dry_run, environment_forgotten=environment_forgotten))
    if not total and not environment_forgotten:
        typer.echo(f"relay: nothing is known of {environment}; `relay inventory` shows what is", err=True)
    if done.kept:
        typer.echo(
            f"relay: {done.kept:,} kept, because their events wait for delivery, or were accepted just now; "
            "try again once they are delivered (`relay status`)",
            err=True,
        )
        raise typer.Exit(EX_TEMPFAIL)


def _confirm(
    queue: QueueConnection, environment: str, is_selected: Callable[[str], bool], seen_before: int | None
) -> None:
    if not can_prompt():
        raise ConfigurationError(
            f"to forget instances of {environment} without a terminal, give --yes; --dry-run counts them"
        )
    outbox = queue.keys.of_outbox(queue.destination, environment)
    selected = forgetting.forget_some(
        queue.client, outbox, is_selected=is_selected, seen_before=seen_before, dry_run=True
    )
    typer.confirm(f"Forget {selected.forgotten:,} instances of {environment}?", abort=True, err=True)


def _outcome(done: Forgotten, *, dry_run: bool, environment_forgotten: bool) -> str:
    would = "would be " if dry_run else ""
    return f"{done.forgotten} {would}forgotten{', and the environment' if environment_forgotten else ''}"
