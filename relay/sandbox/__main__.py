"""`python -m relay.sandbox`: `relay sandbox` without the rest of the CLI, which starts faster."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from relay.errors import ConfigurationError
from relay.sandbox import read_settings, serve
from relay.sandbox.record import KEEP
from relay.sandbox.settings import DEFAULT_HOST, DEFAULT_PORT

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m relay.sandbox", description=__doc__)
    parser.add_argument("--host", default=DEFAULT_HOST)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--token")
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--keep", type=int, default=KEEP)
    parser.add_argument("--fault", action="append", default=[], dest="faults")
    try:
        settings = read_settings(**vars(parser.parse_args(arguments)))
        serve(settings, announce=lambda url: print(f"Sandbox API on {url}", flush=True))  # noqa: T201
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a message of the command
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
