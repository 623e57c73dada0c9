"""A deployment event: this image, by digest, now runs in that environment.

An event has the shape of the deployment API's JSON body, with an envelope around it (`id`, `source`, `time`, named as
in CloudEvents) that the API never gets:

    bytes ──parse──▶ DeploymentEvent ──completed──▶ the same with every default ──body──▶ bytes
                                                        └──instance──▶ Instance: whose digest it changes

A valid event is canonical: two events of the same image, platform and environment are equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainValidator, ValidationError
from pydantic_core import from_json, to_json

from relay.encoding import is_utf8, other_encoding, restored, without_mark
from relay.errors import InvalidEvent, InvalidImage
from relay.events.image import parse_image
from relay.events.platform import Platform, parse_platform, platform_of

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["Defaults", "DeploymentEvent", "Environment", "Image", "Instance", "Platform"]

#: Maximum bytes of `image.name`, `environment.name` and `source` in UTF-8.
MAX_NAME_BYTES = 255

#: Maximum bytes of `id` in UTF-8.
MAX_ID_BYTES = 128

#: Maximum faults in one message; the rest are counted.
MAX_FAULTS_NAMED = 5

#: Maximum characters of an unknown field's name in a message.
MAX_FIELD_CHARACTERS = 60

#: The deployment API's default platform.
LINUX_AMD64 = Platform(os="linux", architecture="amd64")

#: Control characters, line separators, and lone surrogates, which UTF-8 cannot carry.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

#: RFC 3339, section 5.6, and spellings that are as unambiguous: the space between date and time (its note), ISO
#: 8601's comma before fractions (`date -Ins`), the offset as `date +%z` writes it (+0100), to the hour only
#: (PostgreSQL, +01), after a space (GitLab's web hooks, `git log --format=%ci`) or as UTC or GMT, and a zone's name
#: after it (Go, Helm).
_MOMENT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:[.,]([0-9]+))?"
    r"(?: ?(?:([Zz]|[Uu][Tt][Cc]|GMT)|([+-][0-9]{2})(?::?([0-5][0-9]))?(?: [A-Z]{1,5}| [+-][0-9]{2,4})?))?"
)
#: Maximum characters of a time; no clock has more fraction digits.
_MAX_TIME_CHARACTERS = 64


def _text(given: object, max_bytes: int) -> str | None:
    """Return free text, trimmed and checked; None if it is missing or only white space."""
    if given is None:
        return None
    if not isinstance(given, str):
        raise ValueError("must be a string")  # noqa: TRY004 - pydantic turns only a ValueError into a fault
    text = given.strip()
    if text.isascii() and len(text) <= max_bytes and text.isprintable():
        return text or None  # the usual case, without the checks below
    if len(text) <= max_bytes:  # a longer one is refused below, and may have megabytes
        text = restored(text).strip()
    if len(text) > max_bytes:
        raise _too_long(text, max_bytes)
    if _UNPRINTABLE.search(text):
        raise ValueError("must not have control characters or line breaks")
    if len(text.encode()) > max_bytes:
        raise _too_long(text, max_bytes)
    return text or None


def _too_long(text: str, max_bytes: int) -> ValueError:
    size = len(text.encode(errors="surrogatepass"))
    return ValueError(f"has {size} bytes in UTF-8, more than the {max_bytes} allowed")


def _name(given: object) -> str | None:
    return _text(given, MAX_NAME_BYTES)


def _id(given: object) -> str | None:
    return _text(given, MAX_ID_BYTES)


def _image_url(given: object) -> str:
    if given is None or given == "":
        raise InvalidImage("is missing")
    if not isinstance(given, str):
        raise InvalidImage("must be a string")
    return parse_image(given).url


def _utc(given: object) -> datetime | None:
    """Return an aware `datetime`, or text of the form `_MOMENT`, in UTC; cut digits beyond microseconds."""
    if given is None or given == "":
        return None
    moment = given if isinstance(given, datetime) else _moment(given)
    if moment.utcoffset() is None:
        raise ValueError("must have an offset from UTC, such as Z or +02:00")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999 in UTC") from None


def _moment(given: object) -> datetime:
    text = given.strip() if isinstance(given, str) else ""
    parts = _MOMENT.fullmatch(text) if len(text) <= _MAX_TIME_CHARACTERS else None
    if parts is None:
        raise ValueError("must be RFC 3339 text, such as 2025-01-31T12:00:00Z")
    day, time, fraction, zone, hours, minutes = parts.groups()
    offset = "+00:00" if zone else f"{hours}:{minutes or '00'}" if hours else ""
    try:
        return datetime.fromisoformat(f"{day}T{time}.{(fraction or '0')[:6]:0<6}{offset}")
    except ValueError:
        raise ValueError("names a day, a time or an offset that does not exist") from None


def _null_is_missing(given: Any) -> Any:
    return {} if given is None or given == "" else given


Name = Annotated[str | None, PlainValidator(_name, json_schema_input_type=str | None)]
Id = Annotated[str | None, PlainValidator(_id, json_schema_input_type=str | None)]
ImageUrl = Annotated[str, PlainValidator(_image_url, json_schema_input_type=str)]
UtcTime = Annotated[datetime | None, PlainValidator(_utc, json_schema_input_type=datetime | None)]


class Image(BaseModel):
    """The deployed image; `url` is `ImageReference.url`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: ImageUrl
    name: Name = None

    @property
    def repository(self) -> str:
        """The fully qualified repository: `docker.io/library/nginx`."""
        return self.url.partition("@")[0]

    @property
    def digest(self) -> str:
        """The version: `sha256:<64 hex>` or `sha512:<128 hex>`."""
        return self.url.partition("@")[2]


class Environment(BaseModel):
    """The environment of a deployment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = None


class DeploymentEvent(BaseModel):
    """A report, created by `of` and `parse`, which raise `InvalidEvent`; frozen, hashable, equal by value.

    The constructor of the pydantic model, `DeploymentEvent(image={"url": …})`, raises pydantic's `ValidationError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Image
    environment: Annotated[Environment, BeforeValidator(_null_is_missing)] = Environment()
    platform: Annotated[Platform, BeforeValidator(_null_is_missing)] = Platform()
    #: The producer's idempotency key: another event with it is a duplicate.
    id: Id = None
    #: The cluster or pipeline that reports.
    source: Name = None
    #: Time of the deployment in UTC, if known.
    time: UtcTime = None

    @classmethod
    def of(
        cls,
        image_url: str,
        *,
        environment: str | None = None,
        name: str | None = None,
        platform: str | None = None,
        id: str | None = None,  # noqa: A002 - the contract's name
        source: str | None = None,
        time: str | datetime | None = None,
    ) -> Self:
        """Return an event of these parts (platform: `os/architecture[/variant]`), or raise `InvalidEvent`."""
        return cls._checked(
            {
                "image": {"url": image_url, "name": name},
                "environment": {"name": environment},
                "platform": parse_platform(platform) if platform else None,
                "id": id,
                "source": source,
                "time": time,
            }
        )

    @classmethod
    def parse(
        cls,
        body: bytes | str,
        *,
        id: str | None = None,  # noqa: A002 - the contract's name
        source: str | None = None,
        time: str | datetime | None = None,
    ) -> Self:
        """Parse the deployment API's JSON body, or raise `InvalidEvent`.

        The envelope is given beside the body or, as in a line of a file, in it; the one beside takes precedence. The
        caller bounds the body's size.
        """
        return cls._checked(_document(body, id=id, source=source, time=time))

    @classmethod
    def parse_completed(
        cls,
        body: bytes | str,
        defaults: Defaults,
        *,
        id: str | None = None,  # noqa: A002 - the contract's name
        source: str | None = None,
        time: str | datetime | None = None,
    ) -> Self:
        """Parse as `parse` does, and return the event with its defaults."""
        document = _document(body, id=id, source=source, time=time)
        if not defaults.platforms:  # the usual case, without a copy of the event
            document.setdefault("platform", LINUX_AMD64)
        return cls._checked(document).completed(defaults)

    @classmethod
    def from_body(cls, document: Mapping[str, Any]) -> Self:
        """Return the event of an API's body that is a mapping, with the envelope in it, or raise `InvalidEvent`."""
        if not isinstance(document, Mapping):
            raise InvalidEvent("", "the event must be an object")
        return cls._checked(dict(document))

    @classmethod
    def _checked(cls, document: dict[str, Any]) -> Self:
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise _refusal(error) from None

    def body(self) -> bytes:
        """Return the deployment API's JSON body: compact, in the API's order of fields, without missing ones."""
        # Plain values are faster: pydantic serialises each field of a model through a function in Python.
        image = {"url": self.image.url}
        if self.image.name is not None:
            image["name"] = self.image.name
        parts: dict[str, dict[str, str] | BaseModel] = {"image": image}
        if self.environment.name is not None:
            parts["environment"] = {"name": self.environment.name}
        if self.platform.os or self.platform.architecture or self.platform.variant:
            parts["platform"] = self.platform
        return to_json(parts, exclude_none=True)

    def completed(self, defaults: Defaults) -> Self:
        """Return the event with the defaults of its missing fields."""
        environment = self.environment
        if environment.name is None:
            environment = Environment(name=defaults.environment)
        platform = defaults.complete(self.platform, in_environment=environment.name or defaults.environment)
        if environment is self.environment and platform is self.platform:
            return self
        return self.model_copy(update={"environment": environment, "platform": platform})

    @property
    def envelope(self) -> dict[str, Any]:
        """The fields beside the body, without missing ones."""
        given = {"id": self.id, "source": self.source, "time": self.time}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def instance(self) -> Instance:
        """The instance whose digest the event reports; raises `ValueError` unless the event is `completed`."""
        if self.environment.name is None or not self.platform.is_complete:
            raise ValueError("only an event that is completed with its defaults has an instance")
        return Instance(
            environment=self.environment.name,
            repository=self.image.repository,
            name=self.image.name or "",
            platform=str(self.platform),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """Defaults of an event's fields; raises `ValueError` if no event could have that environment."""

    #: The environment of an event that names none.
    environment: str = "deployed"
    #: Globs of environments (`fnmatch.fnmatchcase`) and the platform of events there that name none; the first glob
    #: that matches counts, otherwise linux/amd64.
    platforms: tuple[tuple[str, Platform], ...] = ()

    def __post_init__(self) -> None:
        if _name(self.environment) != self.environment:
            raise ValueError("the default environment must be a name, without white space around it")

    def complete(self, given: Platform, *, in_environment: str) -> Platform:
        """Return the platform with its defaults.

        If operating system and architecture are both missing, they (and the variant, unless given) are those of the
        environment's glob, otherwise linux/amd64. If one is missing, it is linux or amd64, the deployment API's
        default, regardless of the glob. A given variant is kept, for the resulting architecture.
        """
        if given.is_complete:
            return given
        if given.os is None and given.architecture is None:
            rule = self._rule(in_environment)
            return platform_of(
                rule.os or LINUX_AMD64.os,
                rule.architecture or LINUX_AMD64.architecture,
                given.variant or rule.variant,
            )
        return platform_of(given.os or LINUX_AMD64.os, given.architecture or LINUX_AMD64.architecture, given.variant)

    def _rule(self, environment: str) -> Platform:
        for glob, platform in self.platforms:
            if fnmatchcase(environment, glob):
                return platform
        return LINUX_AMD64


class Instance(NamedTuple):
    """A running container, of which a destination keeps the last digest that it was told."""

    environment: str
    #: Fully qualified: `docker.io/library/nginx`.
    repository: str
    #: `image.name`, or "" for the one that has none.
    name: str
    #: `linux/arm64`, `linux/arm/v6`.
    platform: str

    @property
    def key(self) -> str:
        """Its key in the environment: repository, platform, name; only the last may have spaces."""
        return f"{self.repository} {self.platform} {self.name}"

    @classmethod
    def from_key(cls, environment: str, key: str) -> Self:
        """Return the instance of a `key`, or raise `ValueError`."""
        parts = key.split(" ", 2)
        if len(parts) != 3:  # noqa: PLR2004 - as `key` writes them
            raise ValueError(f"{key!a} is no instance's key")
        repository, platform, name = parts
        return cls(environment=environment, repository=repository, name=name, platform=platform)


#: Pydantic's faults in words that need no knowledge of pydantic.
_REASONS = {
    "missing": "is missing",
    "extra_forbidden": "is not a field of a deployment event",
    "model_type": "must be a JSON object",
    "string_type": "must be a string",
}


def _refusal(error: ValidationError) -> InvalidEvent:
    """Return all faults in one line: the first one's field apart, the other fields before their reasons."""
    first, *others = [_fault(fault) for fault in error.errors(include_url=False, include_input=False)]
    if not others:
        return first
    named = [str(fault) for fault in others[: MAX_FAULTS_NAMED - 1]]
    if len(others) > len(named):
        named.append(f"and {len(others) - len(named)} more")
    return InvalidEvent(first.field, "; ".join((first.reason, *named)))


def _fault(fault: ErrorDetails) -> InvalidEvent:
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, InvalidEvent):
        return cause
    field = ".".join(str(part) for part in fault["loc"])
    reason = str(cause) if cause else _REASONS.get(fault["type"], fault["msg"])
    return InvalidEvent(_shown_field(field), reason)


def _shown_field(field: str) -> str:
    """Return an unknown field's name on one line, shortened."""
    shown = field if len(field) <= MAX_FIELD_CHARACTERS else f"{field[:MAX_FIELD_CHARACTERS]}..."
    return _UNPRINTABLE.sub("?", shown)


def _document(
    body: bytes | str,
    *,
    id: str | None,  # noqa: A002 - the contract's name
    source: str | None,
    time: str | datetime | None,
) -> dict[str, Any]:
    try:
        content = body.encode() if isinstance(body, str) else body
        document = from_json(without_mark(content))
    except ValueError as error:
        raise InvalidEvent("", f"the event is not valid JSON ({_json_fault(error, body)})") from None
    if not isinstance(document, dict):
        raise InvalidEvent("", "the event must be a JSON object")
    for part, beside in (("id", id), ("source", source), ("time", time)):
        if beside:
            document[part] = beside
    return document


def _json_fault(error: ValueError, body: bytes | str) -> str:
    encoding = other_encoding(body) if isinstance(body, bytes) else None
    if encoding is not None:
        return f"it is {encoding}: write it in UTF-8"
    if isinstance(error, UnicodeError) or not is_utf8(body):
        return "it is not UTF-8"
    return _UNPRINTABLE.sub("?", str(error))
