"""Is the configuration what somebody meant? Unknown names, rules that match nothing, open files.

A key that is unknown in the TOML file, or in a variable with a double underscore, keeps the relay from starting; a
variable without one that is no setting is passed over by everything, so only here is it told.
"""

from __future__ import annotations

import os
import stat
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from relay.doctor.result import Result, fault, note, ok, warning
from relay.settings import SHORT_NAMES, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from relay.errors import ConfigurationError

#: Variables of the relay's that stand for no setting.
OTHERS = frozenset({"RELAY_CONFIG", "RELAY_REDIS_SERVER"})

#: Variables of the tests' (relay/crashpoints.py), and of docker-compose.yml.
_NOT_OURS = ("RELAY_TEST_", "RELAY_IMAGE")

#: How alike two names must be for one to be meant for the other.
ALIKE = 0.75

_NAMED = 3


def setting_names() -> list[str]:
    """Return every setting, as `section.key`."""
    names = []
    for section, field in Settings.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            names += [f"{section}.{key}" for key in model.model_fields]
    return names


def variable_names() -> list[str]:
    """Return every environment variable that means something."""
    long_names = [f"RELAY_{name.upper().replace('.', '__')}" for name in setting_names()]
    return [*long_names, *(name for name in SHORT_NAMES if name.startswith("RELAY_")), *sorted(OTHERS)]


def refused(error: ConfigurationError) -> Iterator[Result]:
    """Say what keeps the configuration from being read, each with what may have been meant."""
    for line in str(error).splitlines():
        where = line.partition(":")[0].partition(" ")[0]
        meant = _meant(where, [*setting_names(), *variable_names()]) if "is not a setting" in line else ""
        meant = meant or (_meant(where, variable_names()) if "names no section" in line else "")
        do = f"did you mean {meant}?" if meant else "mend it: nothing of the relay starts before"
        yield fault("configuration", line, do)


def examine(settings: Settings, environ: Mapping[str, str] = os.environ) -> Iterator[Result]:
    """Look at what was read, and at what was not."""
    unknown = list(unknown_variables(environ))
    yield from unknown
    if not unknown:
        source = f"RELAY_CONFIG ({environ['RELAY_CONFIG']})" if environ.get("RELAY_CONFIG") else "the environment"
        yield ok("configuration", f"read from {source}; every name in it is known")
    yield from open_files(settings)


def unknown_variables(environ: Mapping[str, str]) -> Iterator[Result]:
    """Name the variables that look like ours and are not read by anything."""
    known = {*variable_names(), *(f"RELAY_{section.upper()}" for section in Settings.model_fields)}
    for name in sorted(environ):
        is_ours = name.startswith("RELAY_") and not name.startswith(_NOT_OURS)
        if not is_ours or name in known or "__" in name.removeprefix("RELAY_"):
            continue  # one with a double underscore is refused when the settings are read
        meant = _meant(name, variable_names())
        yield warning(
            "configuration",
            f"{name} is no setting, and is passed over",
            f"did you mean {meant}?" if meant else "remove it, or see docs/settings.md for the names there are",
        )


def _meant(name: str, known: Sequence[str]) -> str:
    return next(iter(get_close_matches(name, known, n=1, cutoff=ALIKE)), "")


def open_files(settings: Settings) -> Iterator[Result]:
    """Name the files with secrets that every user of this machine may read."""
    secrets = {
        "api.token_file": settings.api.token_file,
        "gateway.tokens_file": settings.gateway.tokens_file,
        "gateway.tls_key": settings.gateway.tls_key,
    }
    named = os.environ.get("RELAY_CONFIG")
    if named and (_inline_secret(settings)):
        secrets["RELAY_CONFIG"] = Path(named)
    for name, path in secrets.items():
        try:
            mode = path.stat().st_mode if path else 0
        except OSError as error:
            yield fault(
                "configuration.files", f"{name} {path} cannot be read: {error.strerror}", "mend its path or owner"
            )
            continue
        if path and stat.S_IMODE(mode) & stat.S_IROTH:
            yield warning(
                "configuration.files",
                f"{name} {path} holds a secret, and everybody on this machine may read it",
                f"chmod o= {path} (in Kubernetes: defaultMode: 0440 and fsGroup)",
            )


def _inline_secret(settings: Settings) -> bool:
    """Tell whether a secret may stand in the TOML file: there is one that no variable gives."""
    variables = ("RELAY_API_TOKEN", "RELAY_API__TOKEN", "ATOMIST_APIKEY")
    api = bool(settings.api.token.get_secret_value()) and not any(os.environ.get(name) for name in variables)
    gateway = bool(settings.gateway.token.get_secret_value()) and not os.environ.get("RELAY_GATEWAY__TOKEN")
    return api or gateway


def environments(globs: Sequence[str], known: Sequence[str]) -> Iterator[Result]:
    """Compare the rules of `[environments]` with the environments that ever got an event."""
    check = "environments"
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in known):
            yield note(
                check,
                f'[environments."{glob}"] matches no environment that is known so far',
                "see whether its name is right; `relay inventory` shows those there are",
            )
    outside = [name for name in known if not any(fnmatchcase(name, glob) for glob in globs)]
    if globs and outside:
        more = f" and {len(outside) - _NAMED:,} more" if len(outside) > _NAMED else ""
        yield note(
            check,
            f"no rule of [environments] matches {', '.join(outside[:_NAMED])}{more}: the defaults hold there",
            "add a rule if that was not meant",
        )
    elif known:
        yield ok(
            check,
            f"{len(known):,} known" + (", each matched by a rule" if globs else "; no rules, so the defaults hold"),
        )
