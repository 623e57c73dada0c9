"""What must not be shown, wherever it turns up: in an error's text, an API's answer, a URL.

Of settings that could be read, relay/secrecy.py knows the secrets. Of those that are refused only the variables are
known, and those that hold one, or a URL with one in it, are masked whatever else is wrong with them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from relay.secrecy import MASK, Secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from relay.doctor.result import Result
    from relay.settings import Settings

    Mask = Callable[[str], str]

#: What is shorter gives nothing away, and stands in too many words.
MIN_SECRET_CHARACTERS = 4

#: Variables that hold a secret, and those that may have one in them.
_WHOLE = ("RELAY_API_TOKEN", "RELAY_API__TOKEN", "RELAY_GATEWAY__TOKEN", "ATOMIST_APIKEY")
_URLS = (
    "RELAY_REDIS_URL",
    "RELAY_REDIS__URL",
    "RELAY_BROKER_URL",
    "RELAY_BROKER__URL",
    "RELAY_API_URL",
    "ATOMIST_URL",
)


def mask_for(settings: Settings) -> Mask:
    """Return what masks the secrets of settings."""
    return Secrets(settings).mask


def mask_for_refused(environ: Mapping[str, str]) -> Mask:
    """Return what masks the secrets of variables, where the settings could not be read."""
    found = {environ.get(name, "") for name in _WHOLE}
    found |= {secret for name in _URLS for secret in _passwords(environ.get(name, ""))}
    secrets = sorted((each for each in found if len(each) >= MIN_SECRET_CHARACTERS), key=len, reverse=True)

    def mask(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, MASK)
        return text

    return mask


def masked(results: Iterable[Result], mask: Mask) -> list[Result]:
    """Return results that show none of these."""
    return [replace(each, what=mask(each.what), do=mask(each.do)) for each in results]


def _passwords(url: str) -> Iterator[str]:
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        return
    yield from (password, unquote(password))
