"""`relay config`: checks and shows the settings."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay.cli import EX_USAGE
from relay.cli.dead_letters import printable
from relay.cli.options import Json  # noqa: TC001 - typer reads it
from relay.errors import ConfigurationError
from relay.operations import settings_report
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.operations.settings_report import Setting

config = typer.Typer(
    name="config",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="""Check and show the configuration: defaults, the file that RELAY_CONFIG names, and the environment.

    Exit codes: 0 done, 2 the configuration is not valid.

    \b
    Examples:
      relay config check
      relay config show
      RELAY_CONFIG=relay.toml relay config show --toml
    """,  # \b keeps typer from joining the lines
)


@config.command()
def check(*, as_json: Json = False) -> None:
    """Check the configuration, and print each fault on a line: where it is, and what to do.

    A variable that begins with RELAY_ and is no setting is a fault too. Connects to nothing.

    Exit codes: 0 it is valid, 2 it is not.

    \b
    Examples:
      relay config check
      RELAY_CONFIG=relay.toml relay config check && relay worker
    """  # noqa: D301 - \b keeps typer from joining the lines
    faults = [str(fault) for fault in settings_report.check()]
    hints = [] if faults else list(settings_report.hints(Settings.load()))
    if as_json:
        typer.echo(json.dumps({"valid": not faults, "faults": faults, "hints": hints}, indent=2))
    else:
        for fault in faults:
            typer.echo(printable(fault), err=True)
        for hint in hints:
            typer.echo(f"note: {hint}", err=True)
        if not faults:
            typer.echo("the configuration is valid")
    if faults:
        raise typer.Exit(EX_USAGE)


@config.command()
def show(
    *,
    as_json: Json = False,
    as_toml: Annotated[
        bool, typer.Option("--toml", help="Print a TOML file for RELAY_CONFIG, without secrets.")
    ] = False,
) -> None:
    """Show the value and the source of every setting; secrets are masked.

    Prints a table to a terminal, otherwise a line for each setting with tabs between: setting, value, source,
    variable or file.

    Exit codes: 0 done, 2 the configuration is not valid.

    \b
    Examples:
      relay config show
      relay config show --toml > relay.toml
      relay config show --json | jq '.[] | select(.source != "default")'
    """  # noqa: D301 - \b keeps typer from joining the lines
    if as_json and as_toml:
        raise ConfigurationError("choose one of --json and --toml")
    settings = settings_report.effective(Settings.load())
    if as_json:
        typer.echo(json.dumps([_as_json(each) for each in settings], indent=2))
    elif as_toml:
        typer.echo(_as_toml(settings), nl=False)
    else:
        _show(settings)


def _as_json(setting: Setting) -> dict[str, Any]:
    return {
        "setting": f"{setting.section}.{setting.key}",
        "value": setting.value,
        "source": setting.source,
        "from": setting.name or None,
    }


def _as_toml(settings: Sequence[Setting]) -> str:
    """Return a TOML file; masked and unset settings are comments in it."""
    lines = []
    for section, members in groupby(settings, key=lambda each: each.section):
        lines.append(f"[{section}]")
        for each in members:
            comment = "" if each.value is not None and not each.is_masked else "#"
            origin = f"  # {each.source}{f': {each.name}' if each.name else ''}"
            lines.append(printable(f"{comment}{each.key} = {_toml(each.value)}{origin}"))
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    """Return a value as TOML, which is JSON for strings, numbers, booleans and lists of strings."""
    return '""' if value is None else json.dumps(value, ensure_ascii=False)


def _show(settings: Sequence[Setting]) -> None:
    rows = [
        (f"{each.section}.{each.key}", "" if each.value is None else str(each.value), str(each.source), each.name)
        for each in settings
    ]
    clean = [tuple(map(printable, row)) for row in rows]
    if not sys.stdout.isatty():
        for row in clean:
            typer.echo("\t".join(row))
        return
    widths = [max(len(row[column]) for row in clean) for column in range(3)]
    for row, each in zip(clean, settings, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        typer.secho("  ".join([*cells, row[3]]).rstrip(), dim=each.source is settings_report.Source.DEFAULT)
