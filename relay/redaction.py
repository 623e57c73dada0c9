"""The secrets that the settings hold, and a text without them: the last belt, behind those that let none get here.

Not promised: a secret that something has cut, or encoded in a way that is none of those below.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from pydantic import BaseModel, SecretStr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from relay.settings import Settings

MASK = "***"

#: What a file of secrets may have held before, and still count: a message about the last may be under way.
REMEMBERED = 8


class Secrets:
    """Tokens, and passwords in URLs. Those in files are read again when these change."""

    def __init__(self, settings: Settings) -> None:
        self._fixed = sorted(set(_in_settings(settings)))
        self._files = [
            _File(path, read)
            for path, read in (
                (settings.api.token_file, _whole),
                (settings.gateway.tokens_file, _tokens),
                (settings.gateway.admission_secret_file, _lines),
            )
            if path is not None
        ]
        self._pattern = self._compile()

    def mask_in(self, value: Any) -> Any:
        """Return a value as JSON has them, with each text in it masked; what is neither becomes its `repr`."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, dict):
            return {self.mask(str(name)): self.mask_in(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.mask_in(each) for each in value]
        return self.mask(value if isinstance(value, str) else repr(value))

    def mask(self, text: str) -> str:
        """Return the text with every secret in it replaced."""
        changed = [file for file in self._files if file.has_changed()]
        if changed:
            self._pattern = self._compile()
        return self._pattern.sub(MASK, text) if self._pattern else text

    @property
    def ways(self) -> list[str]:
        """Each secret in each way that it may be written, the longest first: one may be the beginning of another."""
        secrets = [*self._fixed, *(secret for file in self._files for secret in file.secrets)]
        return sorted({way for secret in secrets for way in _ways_to_write(secret)}, key=len, reverse=True)

    def _compile(self) -> re.Pattern[str] | None:
        ways = self.ways
        return re.compile("|".join(map(re.escape, ways))) if ways else None


class _File:
    """A file of secrets; one that cannot be read leaves those that were read before."""

    def __init__(self, path: Path, read: Callable[[str], list[str]]) -> None:
        self._path = path
        self._read = read
        self._seen: tuple[int, ...] = ()
        self.secrets: list[str] = []
        self.has_changed()

    def has_changed(self) -> bool:
        """Look at the file, and tell whether there is something new in it. A look costs some microseconds."""
        try:
            found = self._path.stat()
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
            if seen == self._seen:
                return False
            new = [each for each in self._read(self._path.read_text(encoding="utf-8-sig")) if each]
        except (OSError, ValueError):
            return False
        self._seen = seen
        self.secrets = list(dict.fromkeys([*new, *self.secrets]))[: max(REMEMBERED, len(new) + 1)]
        return True


def _whole(text: str) -> list[str]:
    return [text.strip()]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def _tokens(text: str) -> list[str]:
    tables = [table for table in tomllib.loads(text).values() if isinstance(table, dict)]
    return [table["token"] for table in tables if isinstance(table.get("token"), str)]


def _in_settings(section: BaseModel) -> Iterator[str]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _in_settings(value)
        elif isinstance(value, SecretStr):
            yield value.get_secret_value()
        elif isinstance(value, str) and "://" in value:
            yield from _passwords(value)


def without_password(text: str, url: str) -> str:
    """Return a text that may repeat the password of this URL, however it is written, without it."""
    ways = {way for password in _passwords(url) for way in _ways_to_write(password)}
    for way in sorted(ways, key=len, reverse=True):
        text = text.replace(way, MASK)
    return text


def _passwords(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        return [parts.password or "", *parse_qs(parts.query).get("password", [])]
    except ValueError:
        return []


def _ways_to_write(secret: str) -> set[str]:
    """Return how a secret may stand in a text: as it is, in a URL or out of it, or quoted as JSON or Python quote."""
    ways = set()
    for each in (secret, unquote(secret)):
        literals = (json.dumps(each), json.dumps(each, ensure_ascii=False), repr(each))
        ways |= {each, quote(each, safe="", errors="surrogatepass"), *(literal[1:-1] for literal in literals)}
    return ways - {""}
