"""What must not be shown, wherever it turns up: in an error's text, an API's answer, a URL.

Of settings that could be read, relay/redaction.py knows the secrets. Of those that are refused only the variables are
known, and those that hold one, or a URL with one in it, are masked whatever else is wrong with them.
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

    from relay.operations.doctor.result import Result

    Mask = Callable[[str], str]

#: What is shorter gives nothing away, and stands in too many words.
MIN_SECRET_CHARACTERS = 4


def mask_for(settings: Settings) -> Mask:
    """Return what masks the secrets of settings."""
    return Secrets(settings).mask


def mask_for_refused(environ: Mapping[str, str]) -> Mask:
    """Return what masks the secrets of variables, where the settings could not be read."""
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


def masked(results: Iterable[Result], mask: Mask) -> list[Result]:
    """Return results that show none of these."""
    return [replace(each, what=mask(each.what), do=mask(each.do)) for each in results]


def _settings() -> Iterator[tuple[str, str, object]]:
    """Give each setting's section, name and type."""
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
