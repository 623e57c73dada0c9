"""What no page may show: tokens that somebody put where they do not belong; pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What stands where something was taken out.
MASK = "[redacted]"

#: A credential by its form: a bearer or basic header, or a field with a telling name.
_CREDENTIAL = re.compile(
    r"""(?ix) (\b(?:bearer|basic)\s+) [^\s"',;]+
      | (["']?[\w-]*(?:token|password|passwd|secret|api[_-]?key|authorization)["']?\s*[:=]\s*["']?) [^\s"',;}]+ """
)


def redacted(text: str, secrets: Iterable[str]) -> str:
    """Mask these secrets, and what looks like one."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, MASK)
    return _CREDENTIAL.sub(lambda match: f"{match[1] or match[2]}{MASK}", text)
