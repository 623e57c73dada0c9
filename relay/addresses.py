"""URLs of Redis and of Celery's broker: the options that they may have, and the TLS options of every client.

Each client library reads options from a URL by rules of its own, and prefers them to its arguments: redis-py accepts
`?decode_responses=true`, kombu reads `rediss://` without options as "do not verify". Therefore no library gets a URL
with options. They are parsed here, against a list, and passed to each library as arguments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from relay.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from urllib.parse import SplitResult

#: TLS options, with the names that redis-py and Celery use. The settings `ca_file`, `cert_file` and `key_file` are an
#: alternative for the files.
TLS_OPTIONS = ("ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

#: Scheme → its permitted options. Those of other schemes are not checked.
OPTIONS = {
    "redis": ("db", "username", "password"),
    "rediss": ("db", "username", "password", *TLS_OPTIONS),
    "unix": ("db", "username", "password"),
    "redis+socket": ("virtual_host",),  # kombu's name for unix://, and for its db
    "amqp": ("heartbeat", "login_method"),
    "pyamqp": ("heartbeat", "login_method"),
    "amqps": ("heartbeat", "login_method", *TLS_OPTIONS),
}

#: Schemes with TLS whose options the relay builds.
TLS_SCHEMES = ("rediss", "amqps")

#: Port of RabbitMQ's management plugin with TLS.
MANAGEMENT_PORT = 15671

#: Option → the setting that replaces it for all clients.
_BY_SETTING = {
    "socket_timeout": "redis.timeout",
    "timeout": "redis.timeout",
    "socket_connect_timeout": "redis.connect_timeout",
    "connect_timeout": "redis.connect_timeout",
}

#: Values of `ssl_cert_reqs`, in the spellings of redis-py and Celery → whether the certificate is verified. For a
#: client, Python's `optional` is `required`.
_CERT_REQS = {
    "required": True,
    "cert_required": True,
    "optional": True,
    "cert_optional": True,
    "none": False,
    "cert_none": False,
}

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

#: Option names that a message may repeat; other text may be a part of a password.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")


#: Message about a URL that cannot be parsed. It repeats nothing, because any part may belong to a password.
UNREADABLE = "cannot be read as a URL; a / ? # or @ in a password must be percent-encoded (%2F %3F %23 %40)"


class Section(Protocol):
    """A section of the settings that has a URL and TLS files."""

    @property
    def ca_file(self) -> Path | None: ...  # noqa: D102 - docs/settings.md
    @property
    def cert_file(self) -> Path | None: ...  # noqa: D102 - the same
    @property
    def key_file(self) -> Path | None: ...  # noqa: D102 - the same
    @property
    def allow_insecure(self) -> bool: ...  # noqa: D102 - the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """How a client verifies a server's certificate, and its own client certificate."""

    is_verified: bool = True
    is_name_checked: bool = True
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def for_redis(self) -> dict[str, Any]:
        """Return the options of redis-py, kombu's Redis transport and Flower, defaults included."""
        return {
            "ssl_cert_reqs": "required" if self.is_verified else "none",
            "ssl_check_hostname": self.is_name_checked,
            "ssl_ca_certs": self.ca_file,
            "ssl_certfile": self.cert_file,
            "ssl_keyfile": self.key_file,
        }

    def for_amqp(self, host: str | None) -> dict[str, Any]:
        """Return the options of py-amqp; without a host, kombu fills in the one that it connects to."""
        import ssl  # noqa: PLC0415 - most producers do without it, and start often

        kind = dict if host or not self.is_name_checked else _OfEachHost
        options = kind(
            cert_reqs=ssl.CERT_REQUIRED if self.is_verified else ssl.CERT_NONE,
            ca_certs=self.ca_file,
            certfile=self.cert_file,
            keyfile=self.key_file,
        )
        if self.is_name_checked:
            options["server_hostname"] = host
        return options

    def check_files(self, section: str) -> None:
        """Raise `ConfigurationError` if a file cannot be read or parsed; the libraries' own errors name no file."""
        if not (self.ca_file or self.cert_file):
            return
        import ssl  # noqa: PLC0415 - the same

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca_file:
                context.load_verify_locations(self.ca_file)
        except OSError as error:
            raise ConfigurationError(
                f"{section}.ca_file: {self.ca_file} cannot be read: {_reason(error)}; "
                "it must have certificates, in PEM"
            ) from error
        try:
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file, password=_no_password)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{section}.cert_file: {self.cert_file} and its key cannot be read: {_reason(error)}; they must be a "
                "certificate and its private key, in PEM and without a password"
            ) from error


class _OfEachHost(dict[str, Any]):
    """py-amqp's options for a broker of several hosts.

    kombu fills in `server_hostname` if it is missing, and would then compare the certificate of the next host with
    the name of the first. Read through `[]`, as kombu does, it is always missing.
    """

    def __getitem__(self, name: str) -> Any:
        return None if name == "server_hostname" else super().__getitem__(name)


class ForRedis(NamedTuple):
    """A URL without options, and the options as arguments of redis-py."""

    url: str
    options: dict[str, Any]


class ForKombu(NamedTuple):
    """A URL without TLS options, and kombu's argument `ssl`: False without TLS.

    `for_flower` is for Flower's own clients of Redis and of RabbitMQ's management plugin.
    """

    url: str
    ssl: dict[str, Any] | bool
    for_flower: dict[str, Any] | bool


def check(url: str) -> None:
    """Raise `ValueError` if a URL's options or database are wrong; values are not repeated, as they may be secret."""
    _options(url)


def check_list(urls: str) -> None:
    """Check a broker's URL, or a list of them, for which kombu has only one set of TLS options."""
    ones = urls.split(";")
    for one in ones:
        check(one)
    schemes = {_scheme(one) for one in ones} - {""}  # kombu also accepts a host alone
    if len(schemes) > 1 and not schemes.isdisjoint(TLS_SCHEMES):
        raise ValueError("the brokers of a list must all be rediss://, or all amqps://, or none of them")
    if len({tuple(sorted(_tls(_options(one)).items())) for one in ones if "://" in one}) > 1:
        raise ValueError("the brokers of a list must have the same ssl_ options")


def unused(url: str, section: Section) -> list[str]:
    """Return the TLS settings that are set although the URL has no TLS."""
    if _scheme(url) in TLS_SCHEMES:
        return []
    return [name for name in ("ca_file", "cert_file", "key_file") if getattr(section, name) is not None]


def trust(url: str, section: Section, variable: str = "allow_insecure") -> Trust:
    """Return the trust of a URL's server; raise `ValueError` if it is unsafe and not allowed.

    `variable` is the name of the setting that allows it, for the message.
    """
    options = _tls(_options(url.partition(";")[0]))
    is_verified = _CERT_REQS[options.get("ssl_cert_reqs", "required").lower()]
    is_name_checked = _BOOLEANS[options.get("ssl_check_hostname", "true").lower()]
    if not section.allow_insecure:
        for name, is_safe in (("ssl_cert_reqs", is_verified), ("ssl_check_hostname", is_name_checked)):
            if not is_safe:
                value = "none" if name == "ssl_cert_reqs" else "false"
                raise ValueError(
                    f"url has {name}={value}, so the password would be sent to any server that answers: remove it "
                    f"and name the server's authority in ca_file, or set {variable} = true on a trusted network"
                )
    cert_file = _one_of(section.cert_file, options, "cert_file", "ssl_certfile")
    key_file = _one_of(section.key_file, options, "key_file", "ssl_keyfile")
    if key_file and not cert_file:
        raise ValueError("key_file is set, and cert_file is not: set both, or neither for no client certificate")
    return Trust(
        is_verified=is_verified,
        is_name_checked=is_verified and is_name_checked,
        ca_file=_one_of(section.ca_file, options, "ca_file", "ssl_ca_certs"),
        cert_file=cert_file,
        key_file=key_file or cert_file,  # redis-py before 8 presents none for asyncio without it
    )


def check_files(url: str, section: Section, name: str) -> None:
    """Raise `ConfigurationError` if a TLS file of a URL with TLS cannot be read; `name` is the section's."""
    if _scheme(url) in TLS_SCHEMES:
        trust(url, section).check_files(name)


def for_redis(url: str, section: Section) -> ForRedis:
    """Return the arguments of redis-py for a `redis://`, `rediss://` or `unix://` URL."""
    options = _options(url)
    own: dict[str, Any] = {name: options[name] for name in ("username", "password") if name in options}
    if "db" in options:
        own["db"] = int(options["db"])
    if _scheme(url) == "rediss":
        own |= trust(url, section).for_redis()
    return ForRedis(_without_options(url), own)


def for_kombu(url: str, section: Section) -> ForKombu:
    """Return the arguments of kombu for a broker's URL of any scheme, or a list of them."""
    ones = url.split(";")
    scheme = _scheme(ones[0])
    bare = ";".join(map(_kombu_url, ones))
    if scheme not in TLS_SCHEMES:
        return ForKombu(bare, ssl=False, for_flower=False)
    required = trust(url, section)
    if scheme == "rediss":
        return ForKombu(bare, required.for_redis(), required.for_redis())
    hosts = {_split(one).hostname or "localhost" if "://" in one else one for one in ones}
    host = unquote(hosts.pop()) if len(hosts) == 1 else None
    return ForKombu(bare, required.for_amqp(host), required.for_redis())


def management_api(urls: str) -> str:
    """Return the address of RabbitMQ's management plugin, with TLS on its default port; empty for other brokers."""
    parts = _split(urls.partition(";")[0])
    if parts.scheme != "amqps":
        return ""
    host = parts.hostname or "localhost"
    return f"https://{f'[{host}]' if ':' in host else host}:{MANAGEMENT_PORT}/api/"


def _kombu_url(url: str) -> str:
    """Return a URL in kombu's form, which has its own scheme for Unix sockets and the user before the host."""
    scheme = _scheme(url)
    if scheme not in OPTIONS or "?" not in url:
        return re.sub("^unix://", "redis+socket://", url)
    parts, options = _split(url), _options(url)
    if scheme not in {"redis", "rediss", "unix"}:
        kept = [f"{name}={quote(value)}" for name, value in options.items() if name not in TLS_OPTIONS]
        return "?".join([_without_options(url), *(["&".join(kept)] if kept else [])])
    place = parts.netloc
    if "username" in options or "password" in options:
        user = quote(options.get("username") or unquote(parts.username or ""), safe="")
        password = quote(options.get("password") or unquote(parts.password or ""), safe="")
        place = f"{user}{':' if password else ''}{password}@{place.rpartition('@')[2]}"
    if scheme == "unix":
        database = f"?virtual_host={int(options['db'])}" if "db" in options else ""
        return f"redis+socket://{place}{parts.path}{database}"
    path = f"/{int(options['db'])}" if "db" in options else parts.path
    return f"{scheme}://{place}{path}"


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise ValueError(UNREADABLE) from None


def _without_options(url: str) -> str:
    return url.partition("?")[0].partition("#")[0]


def _scheme(url: str) -> str:
    """Return the scheme as the libraries read it: in lower case, without leading blanks."""
    return _split(url).scheme


def _options(url: str) -> dict[str, str]:
    """Return a URL's options; raise `ValueError` for an option that is unknown, malformed or repeated."""
    parts = _split(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    options = dict(pairs)
    for name in options:
        if sum(name == each for each, _ in pairs) > 1:
            raise ValueError(f"has {_named(name)} twice: keep one")
    if parts.scheme in OPTIONS:
        for name in options:
            _check_name(name, parts.scheme)
    for name, value in options.items():
        if fault := _fault(name, value):
            raise ValueError(f"{name} must be {fault}")
    if parts.scheme in {"redis", "rediss"}:
        _check_database(unquote(parts.path), options)
    for name, before in (("username", parts.username), ("password", parts.password)):
        if (
            parts.scheme in {"redis", "rediss", "unix"}
            and before
            and options.get(name, unquote(before)) != unquote(before)
        ):
            raise ValueError(f"has one {name} before the @ and another as an option: keep one")
    return options


def _check_name(name: str, scheme: str) -> None:
    if name in OPTIONS[scheme]:
        return
    if name in TLS_OPTIONS:
        raise ValueError(f"{name} is an option of TLS, and {scheme}:// has none: write {_with_tls(scheme)}://")
    setting = _BY_SETTING.get(name)
    what = f"is set by {setting}, not by the URL" if setting else "is not an option that the URL may have"
    raise ValueError(f"{_named(name)} {what}; {scheme}:// takes {', '.join(OPTIONS[scheme])}")


def _with_tls(scheme: str) -> str:
    return "amqps" if "amqp" in scheme else "rediss"


def _fault(name: str, value: str) -> str:
    """Return the value that an option must have, "" if it has it."""
    if not value:
        return "given a value, or left out"
    match name:
        case "db" | "virtual_host" | "heartbeat" if not re.fullmatch(r"[0-9]{1,9}", value):
            return "a number"
        case "ssl_cert_reqs" if value.lower() not in _CERT_REQS:
            return "required or none (CERT_REQUIRED or CERT_NONE)"
        case "ssl_check_hostname" if value.lower() not in _BOOLEANS:
            return "true or false"
    return ""


def _check_database(path: str, options: Mapping[str, str]) -> None:
    """Check that redis-py and kombu read the same database from the URL."""
    if not re.fullmatch(r"(/[0-9]{0,9})?", path):
        raise ValueError("the part after the host must be a database's number, as in redis://host:6379/0")
    if "db" in options and path.strip("/") and int(path.strip("/")) != int(options["db"]):
        raise ValueError("has one database after the host and another as db: keep one")


def _tls(options: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in options.items() if name in TLS_OPTIONS}


def _one_of(file: Path | None, options: Mapping[str, str], setting: str, option: str) -> str | None:
    if file is not None and option in options:
        raise ValueError(f"{setting} is set, and url has {option}: keep one")
    return options.get(option) if file is None else str(file)


def _named(name: str) -> str:
    return name if _NAME.fullmatch(name) else "an option whose name is no word"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)


def _no_password() -> str:
    """Replace OpenSSL's prompt, which would wait at the terminal."""
    raise ValueError("the key has a password")
