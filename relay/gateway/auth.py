"""Authentication of a request, and the environments that its token may report for. Pure."""

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
class Principal:
    """An authenticated client: its name in the configuration, and globs of environments (`fnmatch.fnmatchcase`)."""

    name: str
    environments: tuple[str, ...] = ("*",)
    #: The registry of CDEvents' artifacts that name none; '' is the gateway's default.
    registry: str = ""

    def may_report_for(self, environment: str) -> bool:
        """Return whether one of the globs matches."""
        return "*" in self.environments or any(fnmatchcase(environment, glob) for glob in self.environments)


#: The client of a gateway without tokens, which the settings permit on loopback only.
ANONYMOUS = Principal(name="anonymous")


class Rejection(Enum):
    """Why a request was not authenticated."""

    MISSING_TOKEN = "missing_token"  # noqa: S105 - no token
    WRONG_TOKEN = "wrong_token"  # noqa: S105 - the same


@dataclass(frozen=True)
class Tokens:
    """The SHA-256 of each token, with its principal. Without tokens, every client may report."""

    known: tuple[tuple[bytes, Principal], ...] = ()

    @classmethod
    def single(cls, token: str) -> Self:
        """Return the token of the setting `gateway.token`, none if it is empty."""
        return cls(((_hash(token.encode()), Principal(name="gateway.token")),) if token else ())

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens((*self.known, *other.known))

    def identify(self, authorization: str | None) -> Principal | Rejection:
        """Authenticate an `Authorization` header (RFC 6750, section 2.1), decoded as Latin-1 by the HTTP server."""
        if not self.known:
            return ANONYMOUS
        scheme, _, given = (authorization or "").partition(" ")
        given = given.strip()
        if not given or scheme.lower() != _SCHEME:
            return Rejection.MISSING_TOKEN
        return self.match(given.encode("latin-1")) or Rejection.WRONG_TOKEN

    def match(self, token: bytes) -> Principal | None:
        """Return the principal of a token, in the same time whether it is known or not."""
        given_hash = _hash(token)
        found: Principal | None = None
        for known_hash, principal in self.known:
            if hmac.compare_digest(given_hash, known_hash):
                found = principal
        return found


def parse_secrets(text: str) -> Tokens:
    """Parse the file of admission secrets, one a line; a `ConfigurationError` repeats none of them."""
    admission = Principal(name="admission")
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
    """Parse a tokens file; a `ConfigurationError` names the table at fault, and repeats no token.

    [payments-pipeline]
    token_sha256 = "…"                      # of `printf %s "$TOKEN" | sha256sum`; or token = "…"
    environments = ["payments-*", "shared"]    # default: all
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
            (grant.hash, Principal(name=name, environments=grant.environments, registry=grant.registry))
            for name, grant in grants.items()
        )
    )


def _hash(token: bytes) -> bytes:
    return sha256(token).digest()
