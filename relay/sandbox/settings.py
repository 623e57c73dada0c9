"""Settings of the sandbox."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pydantic_core import from_json

from relay.errors import ConfigurationError
from relay.sandbox.faults import FaultRule, parse_rules
from relay.sandbox.record import KEEP

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Default address.
DEFAULT_HOST: Final = "127.0.0.1"
#: Default port.
DEFAULT_PORT: Final = 8300


@dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """All settings; the defaults are those of `relay sandbox`."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT  #: 0 picks a free one
    token: str | None = field(default=None, repr=False)  #: None: any bearer token passes
    record: Path | None = None  #: file that gets a JSON line for each request
    keep: int = KEEP  #: requests held in memory
    faults: tuple[FaultRule, ...] = ()


def read_settings(
    *,
    host: str,
    port: int,
    token: str | None,
    token_file: Path | None,
    record: Path | None,
    keep: int,
    faults: Sequence[str],
) -> SandboxSettings:
    """Check the command line's values; raise ConfigurationError for a wrong one."""
    if keep < 1:
        raise ConfigurationError("--keep must be at least 1")
    return SandboxSettings(
        host=host,
        port=port,
        token=_read_token(token, token_file),
        record=record,
        keep=keep,
        faults=parse_rules([_read_fault(text) for text in faults]),
    )


def _read_token(token: str | None, token_file: Path | None) -> str | None:
    if token is not None and token_file is not None:
        raise ConfigurationError("give --token or --token-file, not both")
    if token_file is not None:
        try:
            token = token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"--token-file {token_file} cannot be read: {error}") from error
    if token == "":
        raise ConfigurationError("the token is empty; leave it out to let any bearer token pass")
    return token


def _read_fault(text: str) -> object:
    try:
        return from_json(text)
    except ValueError as error:
        raise ConfigurationError(f"--fault {text!r} is not JSON: {error}") from error
