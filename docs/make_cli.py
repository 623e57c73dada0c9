"""Print docs/cli.md from the commands' own help: `python docs/make_cli.py > docs/cli.md`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from relay.cli import COMMANDS, app

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = """\
# Command line

`relay COMMAND --help` says the same. What is a table on a terminal is plain lines where it is piped, and `--json` is
for programs. Exit codes: 0 done, 1 something was refused or not found, 2 usage, 69 service unavailable (Redis or the
gateway not reachable), 75 try again (the queue is full). `relay --install-completion` completes commands and options
in bash, zsh and fish. This page is generated from the commands.
"""

#: Characters of a line of help, whatever the terminal is.
WIDTH = 100


def page() -> str:
    """Return the page."""
    from typer.main import get_command  # noqa: PLC0415 - after the width is set

    os.environ["TERMINAL_WIDTH"] = str(WIDTH)
    group: Any = get_command(app)
    context = group.make_context("relay", [], resilient_parsing=True)
    index = [f"- [`relay {name}`](#relay-{name}): {says}" for name, says in COMMANDS.items()]
    sections = [
        section for name in COMMANDS for section in _sections(group.get_command(context, name), name, "relay")
    ]
    return "\n".join([HEAD, *index, "", *sections])


def _sections(command: Any, name: str, parent: str, level: int = 2) -> Iterator[str]:
    """Yield the command's section, and those of what it has below it."""
    path = f"{parent} {name}"
    context = command.make_context(path, [], resilient_parsing=True)
    context.terminal_width = context.max_content_width = WIDTH
    yield f"{'#' * level} `{path}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    for below, its in getattr(command, "commands", {}).items():
        yield from _sections(its, below, path, level + 1)


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 - its purpose
