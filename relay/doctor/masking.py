"""What must not be shown, wherever it turns up: in an error's text, an API's answer, a URL."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from relay.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from relay.doctor.result import Result
    from relay.settings import Settings

#: What is shorter gives nothing away, and stands in too many words.
MIN_SECRET_CHARACTERS = 4

#: Variables that hold a secret or, as the URLs do, may have one in them.
_WHOLE = ("RELAY_API_TOKEN", "RELAY_API__TOKEN", "RELAY_GATEWAY__TOKEN", "ATOMIST_APIKEY")
_URLS = (
    "RELAY_REDIS_URL",
    "RELAY_REDIS__URL",
    "RELAY_BROKER_URL",
    "RELAY_BROKER__URL",
    "RELAY_API_URL",
    "ATOMIST_URL",
)


def secrets_of(environ: Mapping[str, str], settings: Settings | None) -> list[str]:
    """Return what must not be shown, the longest first; without settings, if these cannot be read."""
    found = {environ.get(name, "") for name in _WHOLE}
    found |= {secret for name in _URLS for secret in _passwords(environ.get(name, ""))}
    if settings is not None:
        found |= {settings.api.token.get_secret_value(), settings.gateway.token.get_secret_value(), _token(settings)}
        found |= {*_passwords(settings.redis.url), *_passwords(settings.broker.url)}
    return sorted((each for each in found if len(each) >= MIN_SECRET_CHARACTERS), key=len, reverse=True)


def _token(settings: Settings) -> str:
    try:
        return settings.api.read_token()
    except ConfigurationError:
        return ""


def _passwords(url: str) -> Iterator[str]:
    """Yield the password of a URL, as written and as meant; and what its query names so."""
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        return
    yield from (password, unquote(password))
    for pair in urlsplit(url).query.split("&"):
        name, _, value = pair.partition("=")
        if "password" in name:
            yield from (value, unquote(value))


def masked(results: Iterable[Result], secrets: list[str]) -> list[Result]:
    """Return results that show none of these."""
    return [replace(each, what=_mask(each.what, secrets), do=_mask(each.do, secrets)) for each in results]


def _mask(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
