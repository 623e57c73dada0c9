"""Masks of secrets in findings, wherever they occur: in an error's text, a destination's answer, a URL.

For settings that could be read, relay/redaction.py knows the secrets. For refused settings only the variables are
known: those that hold a secret, or a URL with a password, are masked whatever else is wrong with them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from relay.redaction import MASK, Secrets
from relay.settings import SHORT_NAMES, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from relay.operations.finding import Finding

    Mask = Callable[[str], str]

#: A shorter secret is not masked: it occurs in too many words.
MIN_SECRET_CHARACTERS = 4


def mask_for(settings: Settings) -> Mask:
    """Return a function that masks the secrets of settings."""
    return Secrets(settings).mask


def mask_for_refused(environ: Mapping[str, str]) -> Mask:
    """Return a function that masks the secrets of variables, for settings that could not be read."""
    found: set[str] = set()
    for section, key, annotation in _settings():
        for name in _variables(section, key):
            value = environ.get(name, "")
            found |= {value} if annotation is SecretStr else set(_passwords(value))
    secrets = sorted((each for each in found if len(each) >= MIN_SECRET_CHARACTERS), key=len, reverse=True)

    def mask(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, MASK)
        return text

    return mask


def masked(findings: Iterable[Finding], mask: Mask) -> list[Finding]:
    """Return findings with their texts masked."""
    return [replace(each, what=mask(each.what), do=mask(each.do)) for each in findings]


def _settings() -> Iterator[tuple[str, str, object]]:
    """Yield each setting's section, name and type."""
    for section, field in Settings.model_fields.items():
        for key, its in getattr(field.annotation, "model_fields", {}).items():
            yield section, key, its.annotation


def _variables(section: str, key: str) -> Iterator[str]:
    yield f"RELAY_{section}__{key}".upper()
    yield from (name for name, its in SHORT_NAMES.items() if its == (section, key))


def _passwords(url: str) -> Iterator[str]:
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        return
    yield from (password, unquote(password))
