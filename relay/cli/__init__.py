"""The command line: one file a command, imported when it is called for."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from relay.errors import ConfigurationError, GatewayRefused, InvalidEvent, QueueFull, RelayError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Command → what it does, in the order of `relay --help`. The file of the same name has the function, or the group.
COMMANDS = {
    "report": "Enqueue deployment events.",
    "spool": "Look at what waits on disk because Redis was away, and send it.",
    "worker": "Run a Celery worker that takes in and delivers.",
    "gateway": "Run the HTTP side: reports, admission, console, metrics.",
    "metrics": "Serve what Prometheus scrapes.",
    "watch": "Report what runs in a cluster, and follow its changes.",
    "up": "Run everything on this machine.",
    "demo": "Show the relay at work, then account for every event.",
    "sandbox": "Run a stand-in for the reporting API.",
    "doctor": "Look for what is wrong with the installation, and say what to do.",
    "status": "Show what waits and what became of the rest.",
    "inventory": "Show what runs where, as far as it was reported.",
    "trace": "Tell what became of an event.",
    "dead": "Work with dead letters: list, show, redrive, drop, export.",
    "pause": "Hold environments' deliveries; events keep queueing.",
    "resume": "Release what was paused.",
    "resync": "Deliver an environment's whole current state again.",
    "forget": "Forget instances that no longer run.",
    "config": "Check and show the configuration.",
}

#: Exit codes, as sysexits.h has them where it has them.
EX_REFUSED, EX_USAGE, EX_UNAVAILABLE, EX_TEMPFAIL = 1, 2, 69, 75


class _Commands(TyperGroup):
    """Finds a command's file by its name: `relay report` must not pay for importing the demo."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - typer's signature
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's signature
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - typer's signature
        if cmd_name not in COMMANDS:
            return None
        function = getattr(import_module(f"relay.cli.{cmd_name}"), cmd_name)
        if isinstance(function, typer.Typer):  # a group of commands
            return typer.main.get_command(function)
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name, context_settings=getattr(function, "context_settings", None))(function)
        return typer.main.get_command(single)


app = typer.Typer(cls=_Commands, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def relay(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),  # noqa: FBT001, FBT003 - typer's way
) -> None:
    """Report which image, by digest, now runs in which environment; the relay owes the delivery."""
    gc.freeze()  # the command's file is imported by now, and all that is imported stays
    gc.enable()
    if version:
        from importlib.metadata import version as installed_version  # noqa: PLC0415 - rarely wanted

        typer.echo(installed_version("deployment-relay"))
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors of ours become one line and an exit code.

    To look for pydantic's plug-ins among all that is installed would cost each command up to a tenth of a second.
    """
    if arguments is None:
        _ensure_utf8()
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        app(args=arguments, prog_name="relay")
    except RelayError as error:
        for line in str(error).splitlines():
            typer.echo(f"relay: {line}", err=True)
        sys.exit(exit_code(error))


def _ensure_utf8() -> None:
    """Replace this process by one in UTF-8 mode where Python takes the locale for ASCII.

    Under LC_ALL=POSIX with PYTHONUTF8=0, `produktion-ö` on the command line, in a variable or in a file's name is
    otherwise a text that UTF-8 cannot carry. The process keeps its id and its open files.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1" and sys.executable:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})  # noqa: S606 - our own command line


def exit_code(error: RelayError) -> int:
    """Return what a shell is told about an error."""
    if isinstance(error, InvalidEvent | GatewayRefused):
        return EX_REFUSED
    if isinstance(error, ConfigurationError):
        return EX_USAGE
    return EX_TEMPFAIL if isinstance(error, QueueFull) else EX_UNAVAILABLE
