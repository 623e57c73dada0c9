"""The settings' values, sources and faults for people, without secrets."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr, ValidationError

from relay import addresses
from relay.connections.clients import connect
from relay.errors import ConfigurationError
from relay.events.event import Defaults
from relay.events.platform import parse_platform
from relay.redaction import MASK, redact_url
from relay.settings import SHORT_NAMES, EnvironmentSettings, Settings, admission_secrets, faults

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from relay import settings

_UNKNOWN = "is not a setting"

#: Settings that are URLs, shown without the parts that may be passwords.
_URLS = frozenset({("redis", "url"), ("broker", "url"), ("api", "url")})

#: The only setting of a file that is written; the others are read.
_WRITTEN = ("kubernetes", "heartbeat_file")

#: Variables of the relay that are no settings.
_OTHERS = frozenset({"RELAY_CONFIG", "RELAY_REDIS_SERVER"})

#: Variables that Kubernetes sets in each container for a service named `relay` or `relay-…`.
_SERVICE_LINK = re.compile(
    r"RELAY_(?:\w+_)?(?:SERVICE_(?:HOST|PORT(?:_\w+)?)|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)"
)

#: Prefixes of variables without a list: settings of environments, and variables of the relay's tests.
_FAMILIES = ("RELAY_ENVIRONMENTS__", "RELAY_TEST_")


class Source(StrEnum):
    """Where a value comes from; the later takes precedence."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting's effective value; `name` is its variable or file, "" for a default."""

    section: str
    key: str
    value: Any
    source: Source
    name: str = ""
    #: Whether a secret in the value is masked.
    is_masked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault, its variable or file ("" for none), and what to do ("" if the fault says it)."""

    where: str
    what: str
    do: str = ""
    is_unknown: bool = False

    def __str__(self) -> str:
        """Return the fault on a line."""
        line = f"{self.where}: {self.what}" if self.where else self.what
        return f"{line}; {self.do}" if self.do else line


def effective(settings: Settings) -> list[Setting]:
    """Return every setting with its masked value, in the order of docs/settings.md."""
    variables, file = _variables(), _file()
    shown = []
    for section, path, given in _all(settings):
        source, name = _source(path, variables, file)
        value, is_masked = _shown(path, given)
        shown.append(
            Setting(section=section, key=path[-1], value=value, source=source, name=name, is_masked=is_masked)
        )
    return shown


def _all(settings: Settings) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Yield each setting's section in the file, its path, and its value."""
    for section in Settings.model_fields:
        part = getattr(settings, section)
        if isinstance(part, dict):
            for glob, rule in part.items():
                for key in type(rule).model_fields:
                    yield f"{section}.{json.dumps(glob)}", (section, glob, key), getattr(rule, key)
            continue
        for key in type(part).model_fields:
            yield section, (section, key), getattr(part, key)


def check() -> list[Fault]:
    """Return the faults of the configuration."""
    found = list(_unknown_variables())
    path = os.environ.get("RELAY_CONFIG")
    try:
        if path and not Path(path).is_file():
            what = f"names {path}, which is no file"
            return [*found, Fault(where="RELAY_CONFIG", what=what, do="correct the path, or unset it")]
        settings = Settings()
    except OSError as error:
        what = f"names {path}, which cannot be read: {error.strerror}"
        return [*found, Fault(where="RELAY_CONFIG", what=what, do="correct the path or its mode")]
    except ValidationError as error:
        named = {fault.where for fault in found}
        return [*found, *(fault for fault in map(_located, faults(error)) if fault.where not in named)]
    except ValueError as error:  # TOML that does not parse, JSON in a variable that does not
        return [*found, Fault(where=path or "environment", what=f"cannot be read: {_parse_fault(error)}")]
    files = list(_files(settings))
    return [*found, *files, *([] if files else _urls(settings)), *_cluster_name(settings)]


def hints(settings: Settings) -> Iterator[str]:
    """Yield notes about a valid configuration with which a part of the relay does not start."""
    if not settings.api.url:
        yield "no API to deliver to is set (RELAY_API_URL): a worker does not start without one"
    elif not (settings.api.token_file or settings.api.token.get_secret_value()):
        yield "no token for the API is set (RELAY_API_TOKEN_FILE): a worker does not start without one"
    if settings.kubernetes != type(settings.kubernetes)() and not settings.kubernetes.cluster:
        yield "no cluster name is set (CLUSTER_NAME): `relay watch kubernetes` does not start without one"
    yield from _tls_hints(settings)


def _tls_hints(settings: Settings) -> Iterator[str]:
    """Yield notes about URLs without TLS or without verification."""
    for section, url, part in (
        ("redis", settings.redis.url, settings.redis),
        ("broker", settings.broker.url or settings.redis.url, settings.broker),
    ):
        if files := addresses.unused(url, part):
            yield f"{section}.{files[0]} is set, and the URL is neither rediss:// nor amqps://: nothing is encrypted"
        if section == "broker" and not settings.broker.url:
            continue
        if not (trust := addresses.trust(url, part)).is_verified or not trust.is_name_checked:
            option = "ssl_check_hostname" if trust.is_verified else "ssl_cert_reqs"
            yield f"{section}.url verifies no server ({option}): any server that answers gets the password"


def _shown(path: tuple[str, ...], value: Any) -> tuple[Any, bool]:
    """Return a value without secrets, and whether any was masked."""
    if isinstance(value, SecretStr):
        is_set = bool(value.get_secret_value())
        return MASK if is_set else "", is_set
    if path in _URLS:
        shown = redact_url(value)
        return shown, shown != value
    if isinstance(value, Path):
        return str(value), False
    return list(value) if isinstance(value, tuple) else value, False


def _variables() -> dict[str, str]:
    """Return the names of variables that are set, by their upper-case form."""
    return {name.upper(): name for name, value in os.environ.items() if value or "__" in name}


def _file() -> Mapping[str, Any]:
    path = os.environ.get("RELAY_CONFIG")
    if not path:
        return {}
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}


def _source(path: tuple[str, ...], variables: Mapping[str, str], file: Mapping[str, Any]) -> tuple[Source, str]:
    section, key = path[0], path[1]
    nested = "RELAY_" + "__".join(path).upper()
    short = [name for name, its in SHORT_NAMES.items() if its == (section, key)]
    for name in (nested, f"RELAY_{section}__{key}".upper(), *short, f"RELAY_{section}".upper()):
        if name in variables:
            return Source.ENVIRONMENT, variables[name]
    part: Any = file
    for step in path:
        part = part.get(step) if isinstance(part, dict) else None
    return (Source.DEFAULT, "") if part is None else (Source.FILE, os.environ["RELAY_CONFIG"])


def _unknown_variables() -> Iterator[Fault]:
    """Yield variables that begin with RELAY_ and are unknown, with the closest known one."""
    known = {*SHORT_NAMES, *_OTHERS}
    for section in Settings.model_fields:
        known.add(f"RELAY_{section}".upper())
        known |= {f"RELAY_{section}__{key}".upper() for key in _keys(section)}
    for name in sorted(os.environ):
        upper = name.upper()
        if not upper.startswith("RELAY_") or upper in known or upper.startswith(_FAMILIES):
            continue
        if _SERVICE_LINK.fullmatch(upper):
            continue
        near = difflib.get_close_matches(upper, sorted(known), n=1, cutoff=0.75)
        meant = f"did you mean {near[0]}?" if near else "unset it; docs/settings.md lists all settings"
        yield Fault(where=name, what=_UNKNOWN, do=meant, is_unknown=True)


def _located(fault: settings.Fault) -> Fault:
    """Return the fault with the variable or file that its value comes from."""
    path = fault.path
    if len(path) < 2:  # noqa: PLR2004 - a section and a key
        where = os.environ.get("RELAY_CONFIG", "") if path and path[0] in _file() else ""
        return Fault(where=where, what=str(fault), is_unknown=fault.is_unknown)
    source, where = _source(path, _variables(), _file())
    return Fault(
        where=where,
        what=str(fault) if source is Source.DEFAULT else f"{fault.setting}: {fault.what}",
        do=_meant(path) if fault.is_unknown else "",
        is_unknown=fault.is_unknown,
    )


def _meant(path: tuple[str, ...]) -> str:
    section = path[0]
    known = sorted(_keys(section))
    near = difflib.get_close_matches(path[-1], known, n=1)
    return f"did you mean {'.'.join((*path[:-1], near[0]))}?" if near else f"[{section}] has {', '.join(known)}"


def _keys(section: str) -> Iterable[str]:
    model = EnvironmentSettings if section == "environments" else Settings.model_fields[section].annotation
    return getattr(model, "model_fields", {})


def _parse_fault(error: ValueError) -> str:
    """Return what could not be parsed, without the text, which may be a secret."""
    if isinstance(error, tomllib.TOMLDecodeError):
        return str(error)
    return str(error).partition("\n")[0]


def _urls(settings: Settings) -> Iterator[Fault]:
    """Yield faults of the Redis URL and of TLS files."""
    try:
        connect(settings.redis).close()
        settings.check_broker_files()
    except ConfigurationError as error:
        yield Fault(where="", what=str(error))


def _cluster_name(settings: Settings) -> Iterator[Fault]:
    """Yield a fault if admission reviews are expected and the cluster has no name."""
    if not settings.expects_reviews:
        return
    try:
        _ = settings.kubernetes.cluster_name
    except ConfigurationError as error:
        yield Fault(where="", what=f"gateway.admission is {settings.gateway.admission!r}, and {error}")


def _files(settings: Settings) -> Iterator[Fault]:
    """Yield faults of files that cannot be read or have no usable content."""
    for _, path, file in _all(settings):
        if not isinstance(file, Path) or path == _WRITTEN:
            continue
        _, name = _source(path, _variables(), _file())
        what = f"{'.'.join(path)}: {file}"
        try:
            with file.open("rb") as opened:
                opened.read(1)
        except OSError as error:
            yield Fault(
                where=name, what=f"{what} cannot be read: {error.strerror}", do="correct the path or its mode"
            )
            continue
        if path == ("api", "token_file"):
            yield from _empty_token(settings, name, what)
        elif path == ("gateway", "admission_secret_file"):
            yield from _unusable_secret(file, name, what)


def _unusable_secret(file: Path, name: str, what: str) -> Iterator[Fault]:
    try:
        admission_secrets(file.read_text(encoding="utf-8"))
    except (ConfigurationError, UnicodeDecodeError) as error:
        reason = str(error) if isinstance(error, ConfigurationError) else "it is not text"
        yield Fault(where=name, what=f"{what} cannot be used: {reason}")


def _empty_token(settings: Settings, name: str, what: str) -> Iterator[Fault]:
    try:
        token = settings.api.read_token()
    except ConfigurationError:
        yield Fault(where=name, what=f"{what} is not text")
        return
    if not token:
        yield Fault(where=name, what=f"{what} is empty", do="put the token in it")


def defaults_of(settings: Settings) -> Defaults:
    """Return the defaults of events' fields."""
    try:
        rules = [(glob, rule.platform) for glob, rule in settings.environments.items() if rule.platform]
        rules.append(("*", settings.defaults.platform))
        platforms = tuple((glob, parse_platform(text)) for glob, text in rules)
        return Defaults(environment=settings.defaults.environment, platforms=platforms)
    except ValueError as error:
        raise ConfigurationError(f"a default of [defaults] or [environments] is wrong: {error}") from error
