"""The command line: one module a command, imported on demand."""

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

#: Command → its help, in the order of `relay --help`. The module of the same name has the function or the group.
COMMANDS = {
    "report": "Enqueue deployment events.",
    "spool": "Show and send the events that were spooled to disk while Redis was away.",
    "worker": "Run a Celery worker for intake and delivery.",
    "gateway": "Run the HTTP gateway: reports, admission, console, metrics.",
    "metrics": "Serve metrics for Prometheus.",
    "watch": "Report the deployments of a cluster, and follow its changes.",
    "up": "Run everything on this machine.",
    "demo": "Demonstrate the relay, and account for every event.",
    "sandbox": "Run a stand-in for the deployment API.",
    "doctor": "Check the installation, and print what to do.",
    "status": "Show the backlog, the counters, and the health of the destination.",
    "inventory": "Show the reported instances of each environment.",
    "trace": "Show the history of an event.",
    "dead": "List, show, redrive, drop and export dead letters.",
    "pause": "Pause the deliveries of environments; events stay queued.",
    "resume": "Resume paused deliveries.",
    "resync": "Deliver the whole current state of an environment again.",
    "forget": "Forget instances that no longer run.",
    "config": "Check and show the configuration.",
}

#: Exit codes, those of sysexits.h where it has one.
EX_REFUSED, EX_USAGE, EX_UNAVAILABLE, EX_TEMPFAIL = 1, 2, 69, 75


class _Commands(TyperGroup):
    """Imports the module of the command that is run, so that `relay report` does not import the demo."""

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
    """Report which image, by digest, runs in which environment; the relay is responsible for the delivery."""
    gc.freeze()  # the command's module is imported by now, and modules are never garbage
    gc.enable()
    if version:
        from importlib.metadata import version as installed_version  # noqa: PLC0415 - rarely used

        typer.echo(installed_version("deployment-relay"))
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; turn a `RelayError` into a message and an exit code.

    Pydantic's plug-ins are disabled: the search for them takes each command up to a tenth of a second.
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
    """Replace this process by one in UTF-8 mode if Python takes the locale's encoding to be ASCII.

    Otherwise, under LC_ALL=POSIX with PYTHONUTF8=0, `produktion-ö` in an argument, a variable or a file's name
    becomes text that UTF-8 cannot encode. The process keeps its id and its open files.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1" and sys.executable:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})  # noqa: S606 - our own command line


def exit_code(error: RelayError) -> int:
    """Return the exit code for an error."""
    if isinstance(error, InvalidEvent | GatewayRefused):
        return EX_REFUSED
    if isinstance(error, ConfigurationError):
        return EX_USAGE
    return EX_TEMPFAIL if isinstance(error, QueueFull) else EX_UNAVAILABLE
