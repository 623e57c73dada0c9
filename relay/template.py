"""Templates with the syntax of `str.format`, without its access to attributes.

`{namespace}/{container}` and `{namespace_labels[team]}`: a placeholder is looked up by the text between its braces.
No attribute, index, conversion or format is evaluated. `{{` and `}}` are braces.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Literal texts, each with the placeholder after it or ""."""

    parts: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str, *, known: Collection[str], maps: Collection[str] = ()) -> Self:
        """Parse a template of `known` placeholders and entries of `maps`, or raise a `ValueError` that names them."""
        try:
            fields = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{text!r} is no template: {error}; write a literal brace twice") from None
        parts = []
        for literal, field, spec, conversion in fields:
            if field is not None and (spec or conversion or not _is_known(field, known, maps)):
                choice = ", ".join([f"{{{name}}}" for name in known] + [f"{{{name}[KEY]}}" for name in maps])
                written = f"{field}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}"
                raise ValueError(f"{{{written}}} is no placeholder; there are: {choice}")
            parts.append((literal, field or ""))
        return cls(parts=tuple(parts))

    @property
    def placeholders(self) -> frozenset[str]:
        """Its placeholders, such as `namespace` and `namespace_labels[team]`."""
        return frozenset(field for _, field in self.parts if field)

    def fill(self, values: Mapping[str, str]) -> str | None:
        """Return the text with the values filled in, or None if one of them is missing or empty."""
        if not all(values.get(field) for field in self.placeholders):
            return None
        return "".join(literal + (values[field] if field else "") for literal, field in self.parts)


def _is_known(field: str, known: Collection[str], maps: Collection[str]) -> bool:
    if field in known:
        return True
    name, bracket, rest = field.partition("[")
    key = rest.removesuffix("]")
    return bool(bracket) and name in maps and bool(key) and not set(key) & set("[]")
