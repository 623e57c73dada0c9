"""`relay report`: enqueues one event, or a stream of JSON lines."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay.cli import EX_REFUSED, exit_code
from relay.cli.backends import open_producer
from relay.cli.jsonl import means_file
from relay.cli.options import filled
from relay.cli.reporting import Reporter
from relay.cli.wait import PendingReceipts
from relay.errors import ConfigurationError, InvalidImage, RelayError
from relay.events.event import DeploymentEvent
from relay.producer.ci import detect
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

#: Default of `--timeout`, in seconds.
WAIT_SECONDS = 300.0


def report(
    image: Annotated[
        str,
        typer.Argument(metavar="IMAGE|FILE|-", help="An image by digest, a JSON lines file, or - (standard input)."),
    ],
    *,
    environment: Annotated[str | None, typer.Option("--environment", "-e", help="Environment that runs it.")] = None,
    name: Annotated[str | None, typer.Option(help="Distinguishes instances of one image.")] = None,
    platform: Annotated[
        str | None, typer.Option(metavar="OS/ARCH[/VARIANT]", help="Default: by environment.")
    ] = None,
    event_id: Annotated[
        str | None, typer.Option("--id", help="Idempotency key: an event reported again with it counts once.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="The cluster or pipeline that reports.")] = None,
    time: Annotated[
        str | None, typer.Option(help="Time of the deployment (RFC 3339). Leave it out if unknown.")
    ] = None,
    gateway: Annotated[
        str | None, typer.Option(parser=filled, metavar="URL", help="Report through this gateway, not to Redis.")
    ] = None,
    gateway_token_file: Annotated[
        str | None,
        typer.Option(parser=filled, metavar="FILE", help="The gateway's token; or set RELAY_GATEWAY_TOKEN."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the event is delivered or a dead letter.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help=f"Time-out of --wait. Default: {WAIT_SECONDS:g}."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print only; connect to nothing.")] = False,
    no_fail: Annotated[bool, typer.Option("--no-fail", help="Exit 0 with a warning when reporting fails.")] = False,
    spool: Annotated[
        str | None,
        typer.Option(
            parser=filled, metavar="DIR", help="Directory to keep events in while Redis is unavailable (relay spool)."
        ),
    ] = None,
    no_detect: Annotated[
        bool, typer.Option("--no-detect", help="Do not take source and id from the CI system's variables.")
    ] = False,
) -> None:
    """Enqueue one deployment event and print its id, or enqueue a stream of JSON lines.

    A line is the reporting API's JSON body, optionally with id, source and time beside image. Bad lines are printed
    with their numbers, and the others are enqueued. The ids of a stream are not printed. A line is sent within a
    fraction of a second, even if the stream pauses. On a signal the lines read so far are sent, and the number of the
    first line that was not sent is printed.

    In GitHub Actions, GitLab CI, CircleCI, Jenkins, and with config/pipelines' steps for Argo and Tekton, source and
    id are taken from the run unless given. --no-fail turns every failure except a wrong option into a warning.

    Exit codes: 0 done (with --wait: delivered, or nothing to deliver), 1 something was refused or is dead, 2 usage,
    69 Redis or the gateway not reachable, 75 the queue or Redis is full, or --wait timed out (try again), 128 + the
    signal's number if a signal ended a stream.

    \b
    Examples:
      relay report ghcr.io/acme/api@sha256:… --environment production
      relay report nginx@sha256:… -e staging --name sidecar --platform linux/arm64 --wait --timeout 60
      relay report deployments.jsonl --dry-run
      cat deployments.jsonl | relay report - --gateway https://relay.example.com --gateway-token-file token
    """  # noqa: D301 - \b keeps typer from joining the lines
    if wait and dry_run:
        raise typer.BadParameter("a dry run has nothing to wait for", param_hint="--wait with --dry-run")
    if timeout is not None and not wait:
        raise typer.BadParameter("only with --wait", param_hint="--timeout")
    from_file = means_file(image)
    fields = {"environment": environment, "name": name, "platform": platform}
    fields |= {"id": event_id, "source": source, "time": time}
    if from_file and any(fields.values()):
        raise typer.BadParameter("options describe a single image: each line of a stream has its own fields")

    def run() -> int:
        settings = _settings(gateway, gateway_token_file, spool)
        origin = None if no_detect else detect(os.environ)
        with open_producer(settings, dry_run=dry_run) as producer:
            pending = PendingReceipts(producer, WAIT_SECONDS if timeout is None else timeout) if wait else None
            reporter = Reporter(producer=producer, origin=origin, pending=pending, is_dry_run=dry_run)
            return reporter.report_file(image) if from_file else reporter.report_one(_event(image, fields))

    sys.exit(_never_failing(run) if no_fail else run())


def _event(image: str, fields: dict[str, str | None]) -> DeploymentEvent:
    """Return the event; an empty image is usually a pipeline's variable that was never set."""
    if not image.strip():
        raise InvalidImage("the image is empty; check whether the variable that it comes from is set")
    return DeploymentEvent.of(image, **fields)


def _settings(gateway: str | None, gateway_token_file: str | None, spool: str | None) -> Settings:
    """Load the settings, with those that options override."""
    options = {"gateway_url": gateway, "gateway_token_file": gateway_token_file}
    given: dict[str, Any] = {"producer": {name: value for name, value in options.items() if value is not None}}
    if spool is not None:
        given["spool"] = {"directory": spool}
    settings = Settings.load(**given)
    if spool is not None and settings.producer.gateway_url:
        raise ConfigurationError("--spool is for reports to Redis, and these go to a gateway")
    return settings


def _never_failing(run: Callable[[], int]) -> int:
    """Run, and print each failure, a bug included, as a warning: a report must not fail the deployment."""
    try:
        code = run()
    except RelayError as error:
        code = exit_code(error)
        for line in str(error).splitlines():
            typer.echo(f"relay: warning: {line}", err=True)
    except Exception as error:  # noqa: BLE001 - see the docstring
        code = EX_REFUSED
        typer.echo(f"relay: warning: {type(error).__name__}: {error}", err=True)
    if code:
        typer.echo(f"relay: warning: exit code 0 instead of {code}, because of --no-fail", err=True)
    return 0
