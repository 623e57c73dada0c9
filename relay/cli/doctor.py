"""`relay doctor`: what is wrong with the installation, and what to do about it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from relay.cli.dead_letters import printable
from relay.cli.options import Json  # noqa: TC001 - typer reads it
from relay.operations.doctor.run import run_doctor
from relay.operations.finding import Severity

if TYPE_CHECKING:
    from relay.operations.finding import Finding

_COLOURS = {Severity.OK: "green", Severity.NOTE: None, Severity.WARNING: "yellow", Severity.FAULT: "red"}


def doctor(
    *,
    offline: Annotated[bool, typer.Option("--offline", help="Leave the API alone.")] = False,
    as_json: Json = False,
) -> None:
    """WorkReading for what is wrong with Redis, broker, workers, API and configuration, and say what to do.

    One line a check: ok, note, warning or fault, what was found, and after an arrow what to do. All checks are made,
    whatever some find, and nothing is changed: the API gets an empty object, of which it can make no deployment.
    Run it where the workers run, with their settings: it sees what this machine sees.

    Exit codes: 0 no fault, 1 a fault or more, 2 usage.

    \b
    Examples:
      relay doctor
      relay doctor --offline
      relay doctor --json | jq -r '.results[] | select(.severity == "fault").what'
    """  # noqa: D301 - \b keeps typer from joining the lines
    results = run_doctor(offline=offline)
    counted = Counter(each.severity for each in results)
    if as_json:
        found = {"faults": counted[Severity.FAULT], "warnings": counted[Severity.WARNING]}
        typer.echo(json.dumps({**found, "results": [asdict(each) for each in results]}, indent=2))
    else:
        for each in results:
            _show(each)
        typer.echo(f"{_number(counted[Severity.FAULT], 'fault')}, {_number(counted[Severity.WARNING], 'warning')}")
    raise typer.Exit(1 if counted[Severity.FAULT] else 0)


def _show(result: Finding) -> None:
    severity = typer.style(
        f"{result.severity:<8}", fg=_COLOURS[result.severity], bold=result.severity is Severity.FAULT
    )
    to_do = f" → {result.do}" if result.do else ""
    typer.echo(f"{severity} {result.check}: {printable(result.what + to_do)}")


def _number(number: int, of: str) -> str:
    return f"{number} {of}" if number == 1 else f"{number or 'no'} {of}s"
