"""The one redaction: the secrets of a configuration, and texts, URLs and answers without them.

It is the last defence. Code that handles a secret must not pass it on in the first place.

Not promised: masking a secret that was cut, or encoded in a way that `_spellings` does not have.
"""

from __future__ import annotations

import html
import json
import re
import tomllib
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from pydantic import BaseModel, SecretStr

from relay import settings as configuration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from relay.settings import Settings

#: Stands in place of each secret.
MASK = "***"

#: Shortest secret that is masked in a page of the console, in characters. A shorter one may be part of the page's own
#: markup and words.
PAGE_CHARACTERS = 8

#: Shortest secret of settings that were refused, in characters: their values may be anything.
REFUSED_CHARACTERS = 4

#: Shortest beginning of a token that is masked at the end of a cut text, in bytes; a shorter one reveals nothing.
BEGINNING_BYTES = 4

#: Earlier secrets of a file that are still masked: a message about them may be on its way.
REMEMBERED = 8

#: A credential by its form: a bearer or basic header, or a field with a telling name. The pattern begins with the
#: telling word: with anything before it, each character of a long text would start a search, which takes minutes.
_CREDENTIAL = re.compile(
    r"""(?ix) (
        \b (?:bearer|basic) \s+
      | (?:token|password|passwd|secret|api[_-]?key|authorization) ["']? \s* [:=] \s* ["']?
        (?: (?:bearer|basic) \s+ )?
    ) [^\s"',;}]+ """
)


class Secrets:
    """Tokens and passwords to mask, of at least `shortest` characters; those in files are read again on a change."""

    def __init__(self, secrets: Iterable[str], files: Iterable[_File] = (), *, shortest: int = 1) -> None:
        self._fixed = frozenset(secrets)
        self._files = list(files)
        self._shortest = shortest
        self._compile()

    @classmethod
    def of(cls, settings: Settings, *, shortest: int = 1) -> Self:
        """Return the secrets of settings: tokens, passwords in URLs, and those in the files that they name."""
        files = (
            (settings.api.token_file, _whole),
            (settings.gateway.tokens_file, _tokens),
            (settings.gateway.admission_secret_file, _lines),
        )
        named = [_File(path, parse) for path, parse in files if path is not None]
        return cls(_in_settings(settings), named, shortest=shortest)

    @classmethod
    def of_variables(cls, environ: Mapping[str, str]) -> Self:
        """Return the secrets in the relay's variables, for settings that were refused."""
        secrets: list[str] = []
        for section, field in configuration.Settings.model_fields.items():
            for key, setting in getattr(field.annotation, "model_fields", {}).items():
                short = [name for name, path in configuration.SHORT_NAMES.items() if path == (section, key)]
                for name in (f"RELAY_{section}__{key}".upper(), *short):
                    value = environ.get(name, "")
                    secrets += [value] if setting.annotation is SecretStr else _passwords(value)
        return cls(secrets, shortest=REFUSED_CHARACTERS)

    def mask(self, text: str) -> str:
        """Return the text with each secret masked."""
        changed = [file for file in self._files if file.reload()]
        if changed:
            self._compile()
        return self._pattern.sub(MASK, text) if self._pattern else text

    def mask_in(self, value: Any) -> Any:
        """Return a JSON value with each text in it masked; any other value becomes its masked `repr`."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, dict):
            return {self.mask(str(name)): self.mask_in(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.mask_in(each) for each in value]
        return self.mask(value if isinstance(value, str) else repr(value))

    def mask_credentials(self, text: str) -> str:
        """Return the text with each secret masked, and each part that has the form of one."""
        return _CREDENTIAL.sub(lambda match: match[1] + MASK, self.mask(text))

    def excerpt(self, text: str, longest: int) -> str:
        """Return so many characters of a text, as `mask_credentials` does, and say if it has more.

        Only slightly more than that is searched. A secret that is cut in two is not recognised, so the text is cut
        behind the longest secret first, and to its length once masked.
        """
        beyond = max(map(len, self._spelled), default=0)
        clean = self.mask_credentials(text[: longest + beyond])
        if len(text) > longest + beyond:
            clean = clean[: max(0, len(clean) - beyond)]
        elif len(clean) <= longest:
            return clean
        return f"{clean[:longest]}… (cut)"

    def _compile(self) -> None:
        secrets = self._fixed.union(*(file.secrets for file in self._files))
        spelled = {each for secret in secrets for each in _spellings(secret) if len(each) >= self._shortest}
        # The longest first: one may be the beginning of another.
        self._spelled = sorted(spelled, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._spelled))) if spelled else None


def redact_url(url: str) -> str:
    """Return a URL without the user's part and without the query: both may hold a password."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    user, at, address = rest.rpartition("@")
    if "?" in user:  # either a password with a "?" in it, or a query's value with an "@"
        return f"{scheme}{separator}{MASK}"
    address, question, _ = address.partition("?")
    return f"{scheme}{separator}{MASK if user else ''}{at}{address}{f'?{MASK}' if question else ''}"


def redact_password(text: str, url: str) -> str:
    """Return a text, which may repeat the password of this URL, without it."""
    return Secrets(_passwords(url)).mask(text)


def redact_token(text: bytes, token: bytes) -> bytes:
    """Return the beginning of an answer without a token that it repeats, even if the token is cut at the end."""
    text = text.replace(token, MASK.encode())
    for length in range(min(len(token), len(text)), BEGINNING_BYTES - 1, -1):
        if text.endswith(token[:length]):
            return text[:-length] + MASK.encode()
    return text


class _File:
    """A file of secrets. If it cannot be read, the secrets from before are kept."""

    def __init__(self, path: Path, parse: Callable[[str], list[str]]) -> None:
        self._path = path
        self._parse = parse
        self._version: tuple[int, ...] = ()
        self.secrets: list[str] = []
        self.reload()

    def reload(self) -> bool:
        """Read the file again if it has changed, and return whether it has. Takes some microseconds if not."""
        try:
            found = self._path.stat()
            version = (found.st_ino, found.st_size, found.st_mtime_ns)
            if version == self._version:
                return False
            new = [each for each in self._parse(self._path.read_text(encoding="utf-8-sig")) if each]
        except (OSError, ValueError):
            return False
        self._version = version
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


def _passwords(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        return [parts.password or "", *parse_qs(parts.query).get("password", [])]
    except ValueError:
        return []


def _spellings(secret: str) -> set[str]:
    """Return how a text may spell a secret: plain, escaped for a URL, as a literal of JSON or Python, or in HTML."""
    spellings = set()
    for each in (secret, unquote(secret)):
        literals = (json.dumps(each), json.dumps(each, ensure_ascii=False), repr(each))
        spellings |= {each, quote(each, safe="", errors="surrogatepass"), *(literal[1:-1] for literal in literals)}
        spellings.add(html.escape(each, quote=False).replace('"', "&#34;").replace("'", "&#39;"))  # as Jinja does
    return spellings - {""}
