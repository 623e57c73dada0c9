"""Is the configuration what somebody meant? Unknown names, rules that match nothing, files that all may read.

What is wrong with any single setting is told by relay/operations/settings_report.py, as `relay config check` does.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from relay.hosts import is_loopback
from relay.operations import settings_report
from relay.operations.doctor.result import Grade, Result, note, ok, warning
from relay.operations.settings_report import Fault, Source
from relay.text import some_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from relay.errors import ConfigurationError
    from relay.settings import Settings


CHECK = "configuration"


def refused(error: ConfigurationError) -> Iterator[Result]:
    """Say what keeps the configuration from being read, and so everything from starting."""
    found = settings_report.check() or [Fault(where="", what=line) for line in str(error).splitlines()]
    for each in found:
        yield _told(Grade.FAULT, each, "mend it: nothing of the relay starts before")


def examine(settings: Settings) -> Iterator[Result]:
    """Look at a configuration that could be read: at what in it was passed over, and at the files that it names."""
    found = settings_report.check()
    for each in found:
        grade = Grade.WARNING if each.is_unknown else Grade.FAULT
        yield _told(grade, each, "mend it: it does not do what was meant")
    if not found:
        source = f"RELAY_CONFIG ({path})" if (path := os.environ.get("RELAY_CONFIG")) else "the environment"
        yield ok(CHECK, f"read from {source}; every name in it is known")
    yield from _open_files(settings)
    yield from _open_doors(settings)


def _told(grade: Grade, fault: Fault, otherwise: str) -> Result:
    return Result(check=CHECK, grade=grade, what=str(replace(fault, do="")), do=fault.do or otherwise)


def _open_files(settings: Settings) -> Iterator[Result]:
    """Name the files with secrets that every user of this machine may read."""
    for name, path in _secret_files(settings):
        try:
            is_open = bool(path.stat().st_mode & stat.S_IROTH)
        except OSError:
            continue  # one that cannot be read is told of elsewhere
        if is_open:
            yield warning(
                "configuration.files",
                f"{name} {path} holds a secret, and everybody on this machine may read it",
                f"chmod o= {path} (in Kubernetes: defaultMode: 0440, and fsGroup)",
            )


def _open_doors(settings: Settings) -> Iterator[Result]:
    """Name what a gateway beyond loopback gives to clients without a token, or takes of them."""
    gateway = settings.gateway
    if is_loopback(gateway.host):
        return
    if gateway.admission == "open":
        yield warning(
            "configuration.open",
            f'gateway.admission = "open" on {gateway.host}: every client that reaches it can report deployments',
            "set gateway.admission_secret_file, and its secret in the webhook's path (docs/gateway.md)",
        )
    if gateway.metrics == "open":
        yield note(
            "configuration.open",
            f'gateway.metrics = "open" on {gateway.host}: every client that reaches it reads names of environments',
            'set gateway.metrics = "token", and give Prometheus one',
        )


def _secret_files(settings: Settings) -> Iterator[tuple[str, Path]]:
    gateway = settings.gateway
    files = {
        "api.token_file": settings.api.token_file,
        "producer.gateway_token_file": settings.producer.gateway_token_file,
        "gateway.tokens_file": gateway.tokens_file,
        "gateway.tls_key": gateway.tls_key,
        "gateway.admission_secret_file": gateway.admission_secret_file,
    }
    yield from ((name, path) for name, path in files.items() if path)
    if any(each.is_masked and each.source is Source.FILE for each in settings_report.effective(settings)):
        yield "RELAY_CONFIG", Path(os.environ["RELAY_CONFIG"])


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
        yield note(
            check,
            f"no rule of [environments] matches {some_of(outside)}: the defaults hold there",
            "add a rule if that was not meant",
        )
    elif known:
        rules = "each matched by a rule" if globs else "no rules, so the defaults hold"
        yield ok(check, f"{len(known):,} known; {rules}")
