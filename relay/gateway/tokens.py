"""The tokens that count now: those of the settings, and of a file that may change while the gateway runs."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from relay.errors import ConfigurationError
from relay.gateway.auth import Tokens, parse_secrets, parse_tokens

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from relay.gateway.auth import Caller
    from relay.settings import GatewaySettings

#: How often the file is looked at, in seconds.
LOOK_SECONDS = 1.0

_log = logging.getLogger("relay.gateway")


class _Source:
    """Reads the file anew when it has changed. One that cannot be read leaves what was read before."""

    def __init__(self, fixed: Tokens, path: Path | None, setting: str, parse: Callable[[str], Tokens]) -> None:
        self._fixed = fixed
        self._path = path
        self._setting = setting
        self._parse = parse
        self._seen: tuple[int, ...] = ()
        self._look_at = 0.0
        self._tokens = fixed
        if path is not None:
            self._seen = self._mark_of(path)
            self._tokens = fixed + self._read(path)

    def current(self) -> Tokens:
        """Return the tokens, as of a second ago at most."""
        now = time.monotonic()
        if self._path is not None and now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look(self._path)
        return self._tokens

    def _look(self, path: Path) -> None:
        try:
            seen = self._mark_of(path)
            if seen == self._seen:
                return
            self._tokens = self._fixed + self._read(path)
        except ConfigurationError as error:
            _log.warning("what was read before stays in force: %s", error)
            seen = ()  # so that it is looked at again
        self._seen = seen

    def _read(self, path: Path) -> Tokens:
        try:
            return self._parse(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self._setting} {path} cannot be read: {type(error).__name__}") from error
        except ConfigurationError as error:
            raise ConfigurationError(f"{self._setting} {path}: {error}") from None

    def _mark_of(self, path: Path) -> tuple[int, ...]:
        """Return what changes with the file, be it written anew or replaced, as Kubernetes replaces its link."""
        try:
            found = path.stat()
        except OSError as error:
            raise ConfigurationError(f"{self._setting} {path} cannot be read: {error.strerror}") from error
        return found.st_ino, found.st_size, found.st_mtime_ns


class TokenSource(_Source):
    """The tokens of those who may report."""

    def __init__(self, settings: GatewaySettings) -> None:
        single = Tokens.single(settings.token.get_secret_value())
        super().__init__(single, settings.tokens_file, "gateway.tokens_file", parse_tokens)


class AdmissionSecrets(_Source):
    """The secrets that stand in the path of admission reviews."""

    def __init__(self, settings: GatewaySettings) -> None:
        super().__init__(Tokens(), settings.admission_secret_file, "gateway.admission_secret_file", parse_secrets)
        #: Whether there are any, so that a review needs one, or a token.
        self.are_set = settings.admission_secret_file is not None

    def match(self, given: str) -> Caller | None:
        """Return who calls with this segment of a path; None if it is none of the secrets."""
        return self.current().match(given.encode(errors="replace"))
