"""`relay doctor`: checks the installation."""

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
    offline: Annotated[bool, typer.Option("--offline", help="Send nothing to the destination.")] = False,
    as_json: Json = False,
) -> None:
    """Check Redis, broker, workers, destination and configuration, and say what to do.

    One line for each finding: ok, note, warning or fault, what was found, and after an arrow what to do. All checks
    run, whatever others find, and change nothing: the destination gets an empty object, of which it can make no
    deployment. Run it where the workers run, with their settings: it sees what this machine sees.

    Exit codes: 0 no fault, 1 a fault or more, 2 usage.

    \b
    Examples:
      relay doctor
      relay doctor --offline
      relay doctor --json | jq -r '.findings[] | select(.severity == "fault").what'
    """  # noqa: D301 - \b keeps typer from joining the lines
    findings = run_doctor(offline=offline)
    count = Counter(each.severity for each in findings)
    if as_json:
        totals = {"faults": count[Severity.FAULT], "warnings": count[Severity.WARNING]}
        typer.echo(json.dumps({**totals, "findings": [asdict(each) for each in findings]}, indent=2))
    else:
        for each in findings:
            _show(each)
        typer.echo(f"{_number(count[Severity.FAULT], 'fault')}, {_number(count[Severity.WARNING], 'warning')}")
    raise typer.Exit(1 if count[Severity.FAULT] else 0)


def _show(finding: Finding) -> None:
    severity = typer.style(
        f"{finding.severity:<8}", fg=_COLOURS[finding.severity], bold=finding.severity is Severity.FAULT
    )
    to_do = f" → {finding.do}" if finding.do else ""
    typer.echo(f"{severity} {finding.check}: {printable(finding.what + to_do)}")


def _number(number: int, of: str) -> str:
    return f"{number} {of}" if number == 1 else f"{number or 'no'} {of}s"
