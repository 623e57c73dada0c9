"""Write docs/settings.md and config/relay.toml from relay/settings.py: `python docs/make_settings.py`."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BeforeValidator

from relay.settings import SHORT_NAMES, EnvironmentSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
PAGE, EXAMPLE = ROOT / "docs" / "settings.md", ROOT / "config" / "relay.toml"

PAGE_HEAD = """\
# Settings

Each is a key of the TOML file that `RELAY_CONFIG` names, and an environment variable `RELAY_<SECTION>__<KEY>`; the
variable takes precedence. Durations are seconds, or a number with a unit: `250ms`, `30s`, `5m`, `24h`, `90d`. Unknown
keys are refused, and so is a variable `RELAY_…__…` of an unknown section. This page and `config/relay.toml` are
generated from `relay/settings.py`.
"""

EXAMPLE_HEAD = """\
# The relay's configuration, read from where RELAY_CONFIG points:
#
#   RELAY_CONFIG=config/relay.toml relay worker
#
# The values are the defaults; settings that depend on your installation are commented out. Each setting is also an
# environment variable, which takes precedence: [delivery] max_in_flight is RELAY_DELIVERY__MAX_IN_FLIGHT.
# A duration is a number of seconds, or a number with a unit: "250ms", "30s", "5m", "24h", "90d".
# Generated from relay/settings.py.
"""

#: Settings that depend on the installation, and a value for the commented-out line. Secrets are among them.
VALUES = {
    "redis.url": "redis://127.0.0.1:6379/0",
    "redis.ca_file": "/etc/relay/redis/ca.pem",
    "redis.cert_file": "/etc/relay/redis/client.pem",
    "redis.key_file": "/etc/relay/redis/client.key",
    "broker.ca_file": "/etc/relay/broker/ca.pem",
    "broker.cert_file": "/etc/relay/broker/client.pem",
    "broker.key_file": "/etc/relay/broker/client.key",
    "spool.directory": "/var/spool/relay",
    "producer.gateway_token": "…",
    "producer.gateway_token_file": "/run/secrets/gateway-token",
    "producer.gateway_ca_file": "/etc/ssl/certs/company.pem",
    "api.url": "https://api.example.com/deployments",
    "api.token": "…",
    "api.token_file": "/run/secrets/api-token",
    "api.ca_file": "/etc/ssl/private-ca.pem",
    "environments.platform": "linux/arm64",
    "gateway.token": "…",
    "gateway.tokens_file": "/run/secrets/gateway-tokens.toml",
    "gateway.admission_secret_file": "/run/secrets/admission-secret",
    "gateway.default_registry": "ghcr.io/acme",
    "gateway.tls_cert": "/tls/tls.crt",
    "gateway.tls_key": "/tls/tls.key",
    "gateway.operator_token": "…16 characters or more…",
    "kubernetes.cluster": "prod-eu-1",
    "kubernetes.heartbeat_file": "/tmp/alive",  # noqa: S108 - an example
}


class Setting(NamedTuple):
    """A setting as both files show it."""

    path: str
    key: str
    meaning: str
    #: As TOML; empty if there is none.
    default: str


def sections() -> Iterator[tuple[str, str, list[Setting]]]:
    """Yield each section's title, its description and its settings."""
    short = {path: name for name, path in reversed(SHORT_NAMES.items())}
    for name, field in Settings.model_fields.items():
        model = EnvironmentSettings if name == "environments" else field.annotation
        title = 'environments."edge-*"' if name == "environments" else name
        meanings = _meanings(model)
        settings = []
        for key, its in model.model_fields.items():
            also = f" Also `{short[name, key]}`." if (name, key) in short else ""
            settings.append(Setting(f"{name}.{key}", key, f"{_one_line(meanings[key])}{also}", _default(its)))
        yield title, inspect.cleandoc(model.__doc__ or ""), settings


def page() -> str:
    """Return docs/settings.md."""
    lines = [PAGE_HEAD]
    for title, description, settings in sections():
        lines += [f"## `[{title}]`\n", f"{_one_line(description)}\n", "| key | default | meaning |\n|---|---|---|"]
        for each in settings:
            shown = each.default.strip('"')
            lines.append(f"| `{each.key}` | {f'`{shown}`' if shown else ''} | {each.meaning} |")
        lines.append("")
    return "\n".join(lines)


def example() -> str:
    """Return config/relay.toml."""
    lines = [EXAMPLE_HEAD]
    for title, description, settings in sections():
        is_commented = all(each.path in VALUES for each in settings)
        lines += [*_comment(description.replace("\n\n", " ")), f"{'#' * is_commented}[{title}]"]
        for each in settings:
            lines += _comment(each.meaning)
            value = VALUES.get(each.path)
            lines.append(f"{each.key} = {each.default}" if value is None else f"#{each.key} = {_toml(value)}")
        lines.append("")
    return "\n".join(lines)


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return the text below each key of a section."""
    # pydantic can do it too, but in each process that reads settings, for a tenth of a cold `relay report`.
    [section] = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    found = {}
    for statement, below in pairwise(section.body if isinstance(section, ast.ClassDef) else []):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(text))):
                found[key] = text
    return found


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None or hasattr(value, "get_secret_value"):
        return '""'
    if isinstance(value, float):
        # Durations have a parser before their type; other numbers have none.
        is_duration = any(isinstance(each, BeforeValidator) for each in field.metadata)
        return _toml(_duration(value)) if is_duration else f"{value:g}"
    return f"{value:_}" if isinstance(value, int) and not isinstance(value, bool) else _toml(value)


def _duration(seconds: float) -> str:
    """Return a duration as the configuration writes it."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:g}ms"
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _comment(text: str) -> list[str]:
    plain = text.replace("`", "")
    return textwrap.wrap(
        plain, 118, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    EXAMPLE.write_text(example(), encoding="utf-8")
