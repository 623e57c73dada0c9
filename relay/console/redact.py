"""What no page may show: tokens that somebody put where they do not belong."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from relay.redaction import Secrets

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from relay.settings import Settings

#: What stands where something was taken out.
MASK = "[redacted]"

#: Characters of a token that is looked for; a shorter one would be found in any text.
SHORTEST_SECRET = 8

#: A credential by its form: a bearer or basic header, or a field whose name ends tellingly. It begins at the telling
#: word: whatever may stand before it would be tried from each character of a long text, which takes minutes.
_CREDENTIAL = re.compile(
    r"""(?ix) (
        \b (?:bearer|basic) \s+
      | (?:token|password|passwd|secret|api[_-]?key|authorization) ["']? \s* [:=] \s* ["']?
        (?: (?:bearer|basic) \s+ )?
    ) [^\s"',;}]+ """
)


def known_secrets(settings: Settings) -> tuple[str, ...]:
    """Return the tokens and passwords of this relay, however written, that can be told from other text."""
    return tuple(way for way in Secrets(settings).ways if len(way) >= SHORTEST_SECRET)


def without(text: str, secrets: Iterable[str]) -> str:
    """Mask these secrets."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def redacted(text: str, secrets: Iterable[str]) -> str:
    """Mask these secrets, and what looks like one; 64 KiB take some milliseconds, whatever they are."""
    return _CREDENTIAL.sub(lambda match: match[1] + MASK, without(text, secrets))


def excerpt(text: str, secrets: Collection[str], longest: int) -> str:
    """Return so many characters of a text, redacted, and say if there are more; no more is looked at than is shown.

    A secret that the cut goes through is not known by its beginning: the text is cut later, and again once redacted.
    """
    beyond = max(map(len, secrets), default=0)
    clean = redacted(text[: longest + beyond], secrets)
    if len(text) > longest + beyond:
        clean = clean[: max(0, len(clean) - beyond)]
    elif len(clean) <= longest:
        return clean
    return f"{clean[:longest]}… (cut)"
