"""Platforms: operating system, architecture and variant, in containerd's spelling.

The rules are containerd's (https://github.com/containerd/platforms: `normalizeOS` and `normalizeArch` in
`database.go`, the characters from `specifierRe` in `platforms.go`), with one difference: containerd infers missing
parts from the machine that it runs on, the relay does not. Operating systems and architectures that containerd does
not know are accepted.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictStr, model_validator

from relay.errors import InvalidEvent

#: Maximum characters of an operating system, architecture or variant; known ones have at most eleven.
MAX_COMPONENT_CHARACTERS = 64

#: Spellings cached by each process; an estate has a handful.
PLATFORMS_REMEMBERED = 256

_COMPONENT = re.compile(r"[A-Za-z0-9_.-]+")
_OS_ALIASES = {"macos": "darwin"}
_ARCHITECTURE_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"}
#: Architectures whose name includes the variant; a variant beside them is ignored.
_ARCHITECTURES_WITH_VARIANT = {"i386": ("386", None), "armhf": ("arm", "v7"), "armel": ("arm", "v6")}
_VARIANT_ALIASES = {
    ("amd64", "v1"): None,
    ("arm64", "8"): None,
    ("arm64", "v8"): None,
    ("arm", None): "v7",
    ("arm", "5"): "v5",
    ("arm", "6"): "v6",
    ("arm", "7"): "v7",
    ("arm", "8"): "v8",
}


class Platform(BaseModel):
    """A platform as reported or completed; missing parts are `None`.

    A variant without an architecture is kept for the architecture that completes it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    os: StrictStr | None = None
    architecture: StrictStr | None = None
    variant: StrictStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _in_one_spelling(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        parts = given.get("os"), given.get("architecture"), given.get("variant")
        if not all(part is None or isinstance(part, str) for part in parts):
            return given  # the fields' own types name the fault
        os, architecture, variant = normalise(*parts)
        return given | {"os": os, "architecture": architecture, "variant": variant}

    @property
    def is_complete(self) -> bool:
        """Whether operating system and architecture are given."""
        return self.os is not None and self.architecture is not None

    def __str__(self) -> str:
        """Return containerd's form: `linux/arm64`, `linux/arm/v6`."""
        if self.is_complete:
            text = f"{self.os}/{self.architecture}"
            return text if self.variant is None else f"{text}/{self.variant}"
        return "/".join(part or "?" for part in (self.os, self.architecture, self.variant))


def parse_platform(text: str) -> Platform:
    """Parse `os/architecture` or `os/architecture/variant`, or raise `InvalidEvent`."""
    parts = [part.strip() for part in text.split("/")]
    if not 2 <= len(parts) <= 3 or not all(parts):  # noqa: PLR2004 - see the message
        raise InvalidEvent("platform", "must be os/architecture or os/architecture/variant, such as linux/arm64")
    return platform_of(*normalise(*parts))


@lru_cache(maxsize=PLATFORMS_REMEMBERED)
def platform_of(os: str | None, architecture: str | None, variant: str | None) -> Platform:
    """Return the platform of valid parts, cached."""
    return Platform(os=os, architecture=architecture, variant=variant)


@lru_cache(maxsize=PLATFORMS_REMEMBERED)
def normalise(
    os: str | None = None, architecture: str | None = None, variant: str | None = None
) -> tuple[str | None, str | None, str | None]:
    """Return operating system, architecture and variant in their canonical spelling; an empty one is `None`.

    Raises `InvalidEvent` with the field `platform.os`, `platform.architecture` or `platform.variant`.
    """
    os = _component("os", os)
    architecture = _component("architecture", architecture)
    variant = _component("variant", variant)
    if os is not None:
        os = _OS_ALIASES.get(os, os)
    if architecture in _ARCHITECTURES_WITH_VARIANT:
        architecture, variant = _ARCHITECTURES_WITH_VARIANT[architecture]
    elif architecture is not None:
        architecture = _ARCHITECTURE_ALIASES.get(architecture, architecture)
        variant = _VARIANT_ALIASES.get((architecture, variant), variant)
    return os, architecture, variant


def _component(name: str, given: str | None) -> str | None:
    if not given:
        return None
    if len(given) > MAX_COMPONENT_CHARACTERS:
        raise InvalidEvent(f"platform.{name}", f"has {len(given)} characters, more than {MAX_COMPONENT_CHARACTERS}")
    component = given.strip()
    if component and not _COMPONENT.fullmatch(component):
        raise InvalidEvent(f"platform.{name}", "may have only ASCII letters, digits, '_', '.' and '-'")
    return component.lower() or None
