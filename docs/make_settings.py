"""Print docs/settings.md from the settings themselves: `python docs/make_settings.py > docs/settings.md`."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import BeforeValidator

from relay.settings import SHORT_NAMES, EnvironmentSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

HEAD = """\
# Settings

Each is a key of the TOML file that `RELAY_CONFIG` names, and an environment variable `RELAY_<SECTION>__<KEY>`; the
variable wins. Durations are seconds, or a number with a unit: `250ms`, `30s`, `5m`, `24h`, `90d`. Unknown keys are
refused, and so is a variable `RELAY_…__…` that names no section. This page is generated from `relay/settings.py`.
"""


def page() -> str:
    """Return the page."""
    short = {path: name for name, path in reversed(SHORT_NAMES.items())}
    return "\n".join([HEAD, *_sections(short)])


def _sections(short: dict[tuple[str, str], str]) -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        model = EnvironmentSettings if name == "environments" else field.annotation
        title = '[environments."GLOB"]' if name == "environments" else f"[{name}]"
        yield f"## `{title}`\n"
        yield f"{_one_line(model.__doc__)}\n"
        yield "| key | default | meaning |\n|---|---|---|"
        meanings = _meanings(model)
        for key in model.model_fields:
            also = f" Also `{short[name, key]}`." if (name, key) in short else ""
            yield f"| `{key}` | {_default(model, key)} | {_one_line(meanings[key])}{also} |"
        yield ""


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """Read the text below each key."""
    # pydantic would too, but in each process that reads settings, for a tenth of a cold `relay report`.
    [section] = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    found = {}
    for statement, below in pairwise(section.body if isinstance(section, ast.ClassDef) else []):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(text))):
                found[key] = text
    return found


def _default(model: type[BaseModel], key: str) -> str:
    value = model.model_fields[key].default
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    if isinstance(value, float):
        # What reads a duration stands before the type; other numbers have none.
        is_duration = any(isinstance(each, BeforeValidator) for each in model.model_fields[key].metadata)
        value = _duration(value) if is_duration else f"{value:g}"
    if isinstance(value, bool | tuple):
        value = json.dumps(value)
    return f"`{value}`" if value not in (None, "") else ""


def _duration(seconds: float) -> str:
    """Write a duration as the configuration does."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 - its purpose
