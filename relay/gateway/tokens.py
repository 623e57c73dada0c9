"""The tokens that count now: those of the settings, and of a file that may change while the gateway runs."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from relay.errors import ConfigurationError
from relay.gateway.auth import Tokens, parse_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from relay.settings import GatewaySettings

#: How often the file is looked at, in seconds.
LOOK_SECONDS = 1.0

_log = logging.getLogger("relay.gateway")


class TokenSource:
    """Reads the file anew when it has changed. One that cannot be read leaves what was read before."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._single = Tokens.single(settings.token.get_secret_value())
        self._path = settings.tokens_file
        self._seen: tuple[int, ...] = ()
        self._look_at = 0.0
        self._tokens = self._single
        if self._path is not None:
            self._seen = _mark_of(self._path)
            self._tokens = self._single + _read(self._path)

    def current(self) -> Tokens:
        """Return the tokens, as of a second ago at most."""
        now = time.monotonic()
        if self._path is not None and now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look(self._path)
        return self._tokens

    def _look(self, path: Path) -> None:
        try:
            seen = _mark_of(path)
            if seen == self._seen:
                return
            self._tokens = self._single + _read(path)
        except ConfigurationError as error:
            _log.warning("the tokens stay those that were read before: %s", error)
            seen = ()  # so that it is looked at again
        self._seen = seen


def _read(path: Path) -> Tokens:
    try:
        return parse_tokens(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"gateway.tokens_file {path} cannot be read: {type(error).__name__}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"gateway.tokens_file {path}: {error}") from None


def _mark_of(path: Path) -> tuple[int, ...]:
    """Return what changes with the file, be it written anew or replaced, as Kubernetes replaces a link of its own."""
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigurationError(f"gateway.tokens_file {path} cannot be read: {error.strerror}") from error
    return found.st_ino, found.st_size, found.st_mtime_ns
