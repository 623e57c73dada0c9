"""Checks of the configuration: unknown names, rules that match nothing, secret files that every user may read.

relay/operations/settings_report.py reports what is wrong with a single setting, as in `relay config check`.
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
from relay.operations.finding import Finding, Severity, note, ok, warning
from relay.operations.settings_report import Fault, Source
from relay.text import some_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from relay.errors import ConfigurationError
    from relay.settings import Settings


CHECK = "configuration"


def explain_refusal(error: ConfigurationError) -> Iterator[Finding]:
    """Yield what keeps the configuration from being read."""
    faults = settings_report.check() or [Fault(where="", what=line) for line in str(error).splitlines()]
    for each in faults:
        yield _finding(Severity.FAULT, each, "fix it: nothing of the relay starts before")


def check_configuration(settings: Settings) -> Iterator[Finding]:
    """Check a configuration that could be read: ignored names, and the files that it names."""
    faults = settings_report.check()
    for each in faults:
        severity = Severity.WARNING if each.is_unknown else Severity.FAULT
        yield _finding(severity, each, "fix it: it has no effect")
    if not faults:
        source = f"RELAY_CONFIG ({path})" if (path := os.environ.get("RELAY_CONFIG")) else "the environment"
        yield ok(CHECK, f"read from {source}; every name in it is known")
    yield from _check_secret_files(settings)
    yield from _check_gateway(settings)


def _finding(severity: Severity, fault: Fault, otherwise: str) -> Finding:
    return Finding(check=CHECK, severity=severity, what=str(replace(fault, do="")), do=fault.do or otherwise)


def _check_secret_files(settings: Settings) -> Iterator[Finding]:
    """Yield the files with secrets that every user of this machine may read."""
    for name, path in _secret_files(settings):
        try:
            is_open = bool(path.stat().st_mode & stat.S_IROTH)
        except OSError:
            continue  # another check reports an unreadable file
        if is_open:
            yield warning(
                "configuration.files",
                f"{name} {path} holds a secret, and every user of this machine may read it",
                f"chmod o= {path} (in Kubernetes: defaultMode: 0440, and fsGroup)",
            )


def _check_gateway(settings: Settings) -> Iterator[Finding]:
    """Yield what a gateway beyond loopback offers to clients without a token."""
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


def decide_environments(globs: Sequence[str], known: Sequence[str]) -> Iterator[Finding]:
    """Compare the rules of `[environments]` with the environments that have had an event."""
    check = "environments"
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in known):
            yield note(
                check,
                f'[environments."{glob}"] matches no environment that is known so far',
                "check its name; `relay inventory` shows the known ones",
            )
    unmatched = [name for name in known if not any(fnmatchcase(name, glob) for glob in globs)]
    if globs and unmatched:
        yield note(
            check,
            f"no rule of [environments] matches {some_of(unmatched)}: the defaults apply there",
            "add a rule if that was not intended",
        )
    elif known:
        rules = "each matched by a rule" if globs else "no rules, so the defaults apply"
        yield ok(check, f"{len(known):,} known; {rules}")
