"""Who sends a request, and for which environments may they report?"""

from __future__ import annotations

import hmac
import tomllib
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError, model_validator

from relay.errors import ConfigurationError
from relay.settings import Registry, admission_secrets

_SCHEME = "bearer"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Whoever has a token: its name in the configuration, and globs of environments (`fnmatch.fnmatchcase`)."""

    name: str
    environments: tuple[str, ...] = ("*",)
    #: The registry of the CDEvents' artifacts that name none; '' is the gateway's default.
    registry: str = ""

    def may_report_for(self, environment: str) -> bool:
        """Tell whether one of the globs matches."""
        return "*" in self.environments or any(fnmatchcase(environment, glob) for glob in self.environments)


#: Who calls where no token is asked for: settings permit that on loopback only.
EVERYBODY = Caller(name="everybody")


class Stranger(Enum):
    """Why nobody that is known sent a request."""

    WITHOUT_TOKEN = "without_token"  # noqa: S105 - no token
    WITH_WRONG_TOKEN = "with_wrong_token"  # noqa: S105 - the same


@dataclass(frozen=True)
class Tokens:
    """Who may report: the SHA-256 of each token, and whose it is. Without any, everybody may."""

    known: tuple[tuple[bytes, Caller], ...] = ()

    @classmethod
    def single(cls, token: str) -> Self:
        """Return the one token of the setting `gateway.token`, none if it is empty."""
        return cls(((_hash(token.encode()), Caller(name="gateway.token")),) if token else ())

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens((*self.known, *other.known))

    def identify(self, authorization: str | None) -> Caller | Stranger:
        """Judge an `Authorization` header as HTTP servers give it (RFC 6750, section 2.1; octets read as Latin-1).

        Takes as long for a right token as for a wrong one: each known one is compared, in constant time.
        """
        if not self.known:
            return EVERYBODY
        scheme, _, given = (authorization or "").partition(" ")
        given = given.strip()
        if not given or scheme.lower() != _SCHEME:
            return Stranger.WITHOUT_TOKEN
        return self.match(given.encode("latin-1")) or Stranger.WITH_WRONG_TOKEN

    def match(self, token: bytes) -> Caller | None:
        """Return whose token this is, in the same time whether it is one or not."""
        given_hash = _hash(token)
        found: Caller | None = None
        for known_hash, caller in self.known:
            if hmac.compare_digest(given_hash, known_hash):
                found = caller
        return found


def parse_secrets(text: str) -> Tokens:
    """Parse the text of an admission secret's file, a secret a line; `ConfigurationError` repeats none of them."""
    admission = Caller(name="admission")
    return Tokens(tuple((_hash(secret.encode()), admission) for secret in admission_secrets(text)))


class _Grant(BaseModel):
    """One table of a tokens file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    token: SecretStr | None = None
    token_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    environments: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    registry: Registry = ""

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if bool(self.token and self.token.get_secret_value()) == bool(self.token_sha256):
            raise ValueError("needs either token or token_sha256")
        return self

    @property
    def hash(self) -> bytes:
        return _hash(self.token.get_secret_value().encode()) if self.token else bytes.fromhex(self.token_sha256 or "")


_GRANTS = TypeAdapter(dict[str, _Grant])


def parse_tokens(text: str) -> Tokens:
    """Read a tokens file's text; `ConfigurationError` names the table at fault, and repeats no token.

    [payments-pipeline]
    token_sha256 = "…"                      # of `printf %s "$TOKEN" | sha256sum`; or token = "…"
    environments = ["payments-*", "shared"]    # left out: all
    registry = "ghcr.io/acme"                  # of CDEvents' artifacts that name none
    """
    try:
        grants = _GRANTS.validate_python(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        place = str(error).rpartition("(")[2].rstrip(")")  # the rest of the message may quote the line
        raise ConfigurationError(f"it is not valid TOML ({place})") from None
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_url=False))
        raise ConfigurationError("; ".join(faults)) from None
    if not grants:
        raise ConfigurationError("it has no token: a table for each, such as [pipeline] and in it token = …")
    return Tokens(
        tuple(
            (grant.hash, Caller(name=name, environments=grant.environments, registry=grant.registry))
            for name, grant in grants.items()
        )
    )


def _hash(token: bytes) -> bytes:
    return sha256(token).digest()
