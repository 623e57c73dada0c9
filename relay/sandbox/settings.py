"""What a stand-in is started with."""

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

#: Where the stand-in listens unless told otherwise.
DEFAULT_HOST: Final = "127.0.0.1"
#: The port it listens on unless told otherwise.
DEFAULT_PORT: Final = 8300


@dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """Everything that can be set; the defaults are those of `relay sandbox`."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT  #: 0 picks a free one
    token: str | None = field(default=None, repr=False)  #: None: any bearer token passes
    record: Path | None = None  #: a JSON line for each request is appended here
    keep: int = KEEP  #: requests held in memory
    faults: tuple[FaultRule, ...] = ()
    request_timeout_seconds: float = 30.0  #: for a request to come in whole, or an answer to be read
    idle_timeout_seconds: float = 75.0  #: a connection without a request is closed after this


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
    """Check what the command line gave; ConfigurationError says what is wrong."""
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
