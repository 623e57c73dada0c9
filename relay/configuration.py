"""Which setting has which value, where it comes from, and what is wrong with any: for people, without secrets."""

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

from relay.connection import connect, without_secrets
from relay.errors import ConfigurationError
from relay.settings import SHORT_NAMES, Settings, faults

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: What is shown of a secret that is set.
MASK = "********"

#: Settings that are URLs: whatever in them may be a password is not shown.
_URLS = frozenset({("redis", "url"), ("broker", "url"), ("api", "url")})

#: Settings that name a file.
_FILES = (
    ("api", "token_file"),
    ("api", "ca_file"),
    ("gateway", "tokens_file"),
    ("gateway", "tls_cert"),
    ("gateway", "tls_key"),
)

#: Variables that are the relay's and no settings.
_OTHERS = frozenset({"RELAY_CONFIG", "RELAY_REDIS_SERVER"})

#: What Kubernetes puts into each container for a service called `relay` or `relay-…`.
_SERVICE_LINK = re.compile(
    r"RELAY_(?:\w+_)?(?:SERVICE_(?:HOST|PORT(?:_\w+)?)|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)"
)

#: How variables begin of which there is no list: the rules for environments, and what the relay's own tests set.
_FAMILIES = ("RELAY_ENVIRONMENTS__", "RELAY_TEST_")


class Source(StrEnum):
    """Where a value comes from; the later wins."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting as it is in effect; `name` says which variable or file it comes from, '' for a default."""

    section: str
    key: str
    value: Any
    source: Source
    name: str = ""


def effective(settings: Settings) -> list[Setting]:
    """Return every setting with its value as it may be shown, in the order of the reference."""
    variables, file = _variables(), _file()
    shown = []
    for title, path, value in _all(settings):
        source, name = _source(path, variables, file)
        shown.append(Setting(section=title, key=path[-1], value=_shown(path, value), source=source, name=name))
    return shown


def _all(settings: Settings) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Yield each setting's section as a file has it, its path, and its value."""
    for section in Settings.model_fields:
        part = getattr(settings, section)
        if isinstance(part, dict):
            for glob, rule in part.items():
                for key in type(rule).model_fields:
                    yield f"{section}.{json.dumps(glob)}", (section, glob, key), getattr(rule, key)
            continue
        for key in type(part).model_fields:
            yield section, (section, key), getattr(part, key)


def check() -> list[str]:
    """Return every fault of the configuration, a line each that says where it is; nothing is raised."""
    found = list(_unknown_variables())
    path = os.environ.get("RELAY_CONFIG")
    if path and not Path(path).is_file():
        return [*found, f"RELAY_CONFIG: names {path}, which is no file; mend the path, or unset it"]
    try:
        settings = Settings()
    except ValidationError as error:
        placed = [_placed(line) for line in faults(error)]
        return [
            *found,
            *(line for line in placed if not any(line.startswith(f"{_variable(one)}: ") for one in found)),
        ]
    except ValueError as error:  # TOML that does not parse, JSON in a variable that does not
        return [*found, f"{path or 'environment'}: cannot be read: {_parse_fault(error)}"]
    return [*found, *_files(settings), *_urls(settings)]


def hints(settings: Settings) -> Iterator[str]:
    """Yield what is no fault of its own, and keeps something from running."""
    if not settings.api.url:
        yield "no API to deliver to is set (RELAY_API_URL): a worker does not start without one"
    elif not (settings.api.token_file or settings.api.token.get_secret_value()):
        yield "no token for the API is set (RELAY_API_TOKEN_FILE): a worker does not start without one"


def _shown(path: tuple[str, ...], value: Any) -> Any:
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if path in _URLS:
        return without_secrets(value)
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _variables() -> dict[str, str]:
    """Return the variables that stand for settings, by the name that is compared: in capitals."""
    return {name.upper(): name for name, value in os.environ.items() if value or "__" in name}


def _file() -> Mapping[str, Any]:
    path = os.environ.get("RELAY_CONFIG")
    if not path:
        return {}
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
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


def _unknown_variables() -> Iterator[str]:
    """Yield what begins like a variable of the relay and is none, with the one that was meant."""
    known = {*SHORT_NAMES, *_OTHERS}
    for section, field in Settings.model_fields.items():
        known.add(f"RELAY_{section}".upper())
        known |= {f"RELAY_{section}__{key}".upper() for key in getattr(field.annotation, "model_fields", {})}
    for name in sorted(os.environ):
        upper = name.upper()
        if not upper.startswith("RELAY_") or upper in known or upper.startswith(_FAMILIES):
            continue
        if _SERVICE_LINK.fullmatch(upper):
            continue
        near = difflib.get_close_matches(upper, sorted(known), n=1, cutoff=0.75)
        meant = f"did you mean {near[0]}?" if near else "unset it; docs/settings.md has all there are"
        yield f"{name}: is not a setting; {meant}"


def _placed(line: str) -> str:
    """Put before a fault where it is to be mended: the variable or the file that the value comes from."""
    where, separator, what = line.partition(": ")
    if not separator:
        return line
    path = tuple(where.partition(" ")[0].split("."))
    if len(path) < 2:  # noqa: PLR2004 - a section and a key
        return f"{os.environ.get('RELAY_CONFIG', '')}: {line}" if path[0] in _file() else line
    source, name = _source(path, _variables(), _file())
    what += _meant(path) if what == "is not a setting" else ""
    return f"{name}: {'.'.join(path)}: {what}" if source is not Source.DEFAULT else line


def _variable(fault: str) -> str:
    """Return the variable that a fault begins with."""
    return fault.partition(": ")[0]


def _meant(path: tuple[str, ...]) -> str:
    known = getattr(Settings.model_fields[path[0]].annotation, "model_fields", {})
    near = difflib.get_close_matches(path[-1], sorted(known), n=1)
    return f"; did you mean {path[0]}.{near[0]}?" if near else f"; [{path[0]}] has {', '.join(known)}"


def _parse_fault(error: ValueError) -> str:
    """Say what could not be parsed without repeating it: it may be a secret."""
    if isinstance(error, tomllib.TOMLDecodeError):
        return str(error)
    return str(error).partition("\n")[0]


def _urls(settings: Settings) -> Iterator[str]:
    """Yield a Redis URL that is none."""
    try:
        connect(settings.redis).close()
    except ConfigurationError as error:
        yield str(error)


def _files(settings: Settings) -> Iterator[str]:
    """Yield the files that are named and cannot be read."""
    for section, key in _FILES:
        path = getattr(getattr(settings, section), key)
        if path is None:
            continue
        _, name = _source((section, key), _variables(), _file())
        try:
            with path.open("rb") as file:
                file.read(1)
        except OSError as error:
            yield f"{name}: {section}.{key}: {path} cannot be read: {error.strerror}; mend the path or its mode"
            continue
        if (section, key) == ("api", "token_file"):
            yield from _empty_token(settings, name)


def _empty_token(settings: Settings, name: str) -> Iterator[str]:
    try:
        token = settings.api.read_token()
    except ConfigurationError:
        yield f"{name}: api.token_file: {settings.api.token_file} is not text"
        return
    if not token:
        yield f"{name}: api.token_file: {settings.api.token_file} is empty; put the token in it"
