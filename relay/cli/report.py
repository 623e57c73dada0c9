"""`relay report`: enqueue one event, or a stream of JSON lines."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay.cli import EX_REFUSED, exit_code
from relay.cli.backends import open_way
from relay.cli.jsonl import means_file
from relay.cli.options import filled
from relay.cli.reporting import Reporter
from relay.cli.wait import Fates
from relay.errors import ConfigurationError, InvalidImage, RelayError
from relay.events.event import DeploymentEvent
from relay.producer.ci import detect
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

#: How long `--wait` waits unless told.
WAIT_SECONDS = 300.0


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
    gateway: Annotated[
        str | None, typer.Option(parser=filled, metavar="URL", help="Report through this gateway, not to Redis.")
    ] = None,
    gateway_token_file: Annotated[
        str | None,
        typer.Option(parser=filled, metavar="FILE", help="Has the gateway's token; or set RELAY_GATEWAY_TOKEN."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is delivered, or dead.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help=f"How long --wait waits; default: {WAIT_SECONDS:g}."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print only; contact nobody.")] = False,
    no_fail: Annotated[bool, typer.Option("--no-fail", help="Exit 0 with a warning when reporting fails.")] = False,
    spool: Annotated[
        str | None,
        typer.Option(
            parser=filled, metavar="DIR", help="Where events wait on disk while Redis is away (relay spool)."
        ),
    ] = None,
    no_detect: Annotated[
        bool, typer.Option("--no-detect", help="Take neither source nor id from the CI system's variables.")
    ] = False,
) -> None:
    """Enqueue one deployment event and print its id, or enqueue a stream of JSON lines.

    A line holds the reporting API's JSON body, and optionally id, source and time beside image. A bad line is named
    with its number; the good ones go through. Of a stream no ids are printed. A line is sent soon after it is read,
    though the next one does not come; on a signal what was read is sent, and the first line that was not is named.

    In GitHub Actions, GitLab CI, CircleCI, Jenkins, and config/pipelines' steps for Argo and Tekton, source and id
    are the run's unless given. --no-fail turns every failure but a wrong option into a warning.

    Exit codes: 0 done (with --wait: delivered, or nothing to deliver), 1 something was refused or is dead, 2 usage,
    69 Redis or the gateway not reachable, 75 the queue or Redis is full, or --wait ended early (try again), 128 + the
    signal's number if a signal ended a stream.

    \b
    Examples:
      relay report ghcr.io/acme/api@sha256:… --environment production
      relay report nginx@sha256:… -e staging --name sidecar --platform linux/arm64 --wait --timeout 60
      relay report deployments.jsonl --dry-run
      cat deployments.jsonl | relay report - --gateway https://relay.example.com --gateway-token-file token
    """  # noqa: D301 - \b keeps typer from joining the lines
    if wait and dry_run:
        raise typer.BadParameter("what is not reported has nothing to wait for", param_hint="--wait with --dry-run")
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
        with open_way(settings, dry_run=dry_run) as way:
            fates = Fates(way, WAIT_SECONDS if timeout is None else timeout) if wait else None
            reporter = Reporter(way=way, origin=origin, fates=fates)
            return reporter.report_file(image) if from_file else reporter.report_one(_event(image, fields))

    sys.exit(_never_failing(run) if no_fail else run())


def _event(image: str, fields: dict[str, str | None]) -> DeploymentEvent:
    """Make the event; an image of nothing is most often a variable of a pipeline that was never set."""
    if not image.strip():
        raise InvalidImage("the image is empty; see whether what it should have come from was set")
    return DeploymentEvent.of(image, **fields)


def _settings(gateway: str | None, gateway_token_file: str | None, spool: str | None) -> Settings:
    """Load the settings, those that options give among them."""
    options = {"gateway_url": gateway, "gateway_token_file": gateway_token_file}
    given: dict[str, Any] = {"producer": {name: value for name, value in options.items() if value is not None}}
    if spool is not None:
        given["spool"] = {"directory": spool}
    settings = Settings.load(**given)
    if spool is not None and settings.producer.gateway_url:
        raise ConfigurationError("a spool keeps what Redis does not take, and these reports go to a gateway")
    return settings


def _never_failing(run: Callable[[], int]) -> int:
    """Run; whatever fails is a warning, be it a fault of ours: a deployment must not fail because of its report."""
    try:
        code = run()
    except RelayError as error:
        code = exit_code(error)
        for line in str(error).splitlines():
            typer.echo(f"relay: warning: {line}", err=True)
    except Exception as error:  # noqa: BLE001 - see above
        code = EX_REFUSED
        typer.echo(f"relay: warning: {type(error).__name__}: {error}", err=True)
    if code:
        typer.echo(f"relay: warning: exit code 0 instead of {code}, because of --no-fail", err=True)
    return 0
