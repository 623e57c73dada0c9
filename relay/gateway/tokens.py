"""The tokens in force: those of the settings, and of a file that may change while the gateway runs."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from relay.errors import ConfigurationError
from relay.gateway.auth import Tokens, parse_secrets, parse_tokens

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from relay.gateway.auth import Principal
    from relay.settings import GatewaySettings

#: The shortest time between two checks of the file.
CHECK_SECONDS = 1.0

_log = logging.getLogger("relay.gateway")


class _TokenFile:
    """Tokens of a file, read again when it changes. An unreadable file leaves the tokens read before in force."""

    def __init__(self, fixed: Tokens, path: Path | None, setting: str, parse: Callable[[str], Tokens]) -> None:
        self._fixed = fixed
        self._path = path
        self._setting = setting
        self._parse = parse
        self._version: tuple[int, ...] = ()
        self._check_at = 0.0
        self._tokens = fixed
        if path is not None:
            self._version = self._version_of(path)
            self._tokens = fixed + self._read(path)

    def current(self) -> Tokens:
        """Return the tokens, at most a second old."""
        now = time.monotonic()
        if self._path is not None and now >= self._check_at:
            self._check_at = now + CHECK_SECONDS
            self._refresh(self._path)
        return self._tokens

    def _refresh(self, path: Path) -> None:
        try:
            version = self._version_of(path)
            if version == self._version:
                return
            self._tokens = self._fixed + self._read(path)
        except ConfigurationError as error:
            _log.warning("the tokens that were read before stay in force: %s", error)
            version = ()  # checked again next time
        self._version = version

    def _read(self, path: Path) -> Tokens:
        try:
            return self._parse(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self._setting} {path} cannot be read: {type(error).__name__}") from error
        except ConfigurationError as error:
            raise ConfigurationError(f"{self._setting} {path}: {error}") from None

    def _version_of(self, path: Path) -> tuple[int, ...]:
        """Return a value that changes when the file is rewritten, or replaced as Kubernetes replaces its link."""
        try:
            found = path.stat()
        except OSError as error:
            raise ConfigurationError(f"{self._setting} {path} cannot be read: {error.strerror}") from error
        return found.st_ino, found.st_size, found.st_mtime_ns


class TokenSource(_TokenFile):
    """The tokens that may report."""

    def __init__(self, settings: GatewaySettings) -> None:
        single = Tokens.single(settings.token.get_secret_value())
        super().__init__(single, settings.tokens_file, "gateway.tokens_file", parse_tokens)


class AdmissionSecrets(_TokenFile):
    """The secrets in the path of admission reviews."""

    def __init__(self, settings: GatewaySettings) -> None:
        super().__init__(Tokens(), settings.admission_secret_file, "gateway.admission_secret_file", parse_secrets)
        #: Whether a review needs a secret or a token.
        self.are_set = settings.admission_secret_file is not None

    def match(self, given: str) -> Principal | None:
        """Return the principal of a path segment, None if it is none of the secrets."""
        return self.current().match(given.encode(errors="replace"))
