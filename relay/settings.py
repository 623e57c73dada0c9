"""Every setting: read once, checked at start, described where it stands.

Three sources, the earlier winning: arguments, environment variables (`RELAY_<SECTION>__<KEY>`, and the
short names of `SHORT_NAMES`), and the TOML file that `RELAY_CONFIG` names. Durations are numbers of
seconds or a number with a unit ("250ms", "30s", "5m", "24h", "90d"); here they are float seconds.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import from_json
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from relay import addresses
from relay.errors import ConfigurationError, InvalidImage
from relay.events.image import parse_image
from relay.hosts import is_loopback
from relay.template import Template

if TYPE_CHECKING:
    from typing import Self

#: The name of the one destination that settings without a table of destinations describe.
DEFAULT_DESTINATION = "default"

#: Environment variable → the setting it stands for. The ATOMIST_ names and CLUSTER_NAME are those of the reporting
#: API's own Kubernetes controller, so that a deployment of it can be pointed here unchanged.
SHORT_NAMES = {
    "RELAY_REDIS_URL": ("redis", "url"),
    "RELAY_BROKER_URL": ("broker", "url"),
    "RELAY_API_URL": ("api", "url"),
    "RELAY_API_TOKEN": ("api", "token"),
    "RELAY_API_TOKEN_FILE": ("api", "token_file"),
    "RELAY_GATEWAY_URL": ("producer", "gateway_url"),
    "RELAY_GATEWAY_TOKEN": ("producer", "gateway_token"),
    "RELAY_GATEWAY_TOKEN_FILE": ("producer", "gateway_token_file"),
    "ATOMIST_URL": ("api", "url"),
    "ATOMIST_APIKEY": ("api", "token"),
    "CLUSTER_NAME": ("kubernetes", "cluster"),
}

#: How a Redis's URL begins.
REDIS_SCHEMES = ("redis://", "rediss://", "unix://")

#: How those brokers' URLs begin that are common URLs; others have grammars of their own, and `;` parts a list.
_COMMON_BROKERS = (*REDIS_SCHEMES, "amqp://", "amqps://", "pyamqp://")

#: The lease must outlive the longest request by this much, or a paused drain's request could still be in
#: flight when its successor sends the same instance.
LEASE_MARGIN_SECONDS = 1.0

#: A token that a person types may be guessed; one of this length is not.
SHORTEST_OPERATOR_TOKEN = 16

#: A name, an IPv4 address, or an IPv6 address in brackets; a port is permitted.
_HOST_NAME = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

#: A secret that is one segment of a path: nothing in it needs to be encoded, and it is too long to be guessed.
_PATH_SECRET = re.compile(r"[A-Za-z0-9._~-]{16,256}")

_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)")


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError('not a duration: write seconds, or a number with a unit such as "250ms", "30s", "24h"')
    return float(match[1]) * _UNITS[match[2]]


def _readable_url(url: str) -> str:
    """Refuse a URL that cannot be split, in words of our own: urllib's repeat what may be half a password."""
    try:
        _ = urlsplit(url).port  # the port is read only when it is asked for
    except ValueError:
        raise ValueError(addresses.UNREADABLE) from None
    return url


def _redis_url(url: str) -> str:
    if not url.startswith(REDIS_SCHEMES):
        raise ValueError(f"must begin with {', '.join(REDIS_SCHEMES[:-1])} or {REDIS_SCHEMES[-1]}")
    addresses.check(_with_whole_password(url))
    return url


def _broker_url(url: str) -> str:
    if url.startswith(_COMMON_BROKERS) and ";" not in url:
        _with_whole_password(url)
    addresses.check_list(url)
    return url


def _with_whole_password(url: str) -> str:
    """Refuse a URL that its password cuts short: the rest would be taken for a path, and another host be asked."""
    parts = urlsplit(_readable_url(url))
    if parts.scheme != "unix" and "@" in parts.path + parts.query + parts.fragment:
        raise ValueError(addresses.UNREADABLE)
    return url


def _network(text: str) -> str:
    """Refuse what is neither an address nor a network (CIDR)."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is neither an IP address nor a network such as 10.0.0.0/8") from None
    return text


def _host_name(text: str) -> str:
    """Refuse what no `Host` header can be: a URL, a pattern, nothing."""
    if not _HOST_NAME.fullmatch(text.strip()):
        raise ValueError(
            f"{text!r} is no host name: write it as relay.example.com, without scheme, path or *, "
            "and an IPv6 address in brackets"
        )
    return text


def _read_token(token: SecretStr, file: Path | None, setting: str) -> str:
    if file is None:
        return token.get_secret_value()
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{setting} {file} cannot be read: {error}") from error


def admission_secrets(text: str) -> list[str]:
    """Parse the text of `gateway.admission_secret_file`, a secret a line; an error repeats none of them."""
    secrets = [line.strip() for line in text.splitlines() if line.strip()]
    if not secrets or not all(_PATH_SECRET.fullmatch(secret) for secret in secrets):
        raise ConfigurationError(
            "each line must be a secret of 16 to 256 letters, digits or -._~ (make one with: openssl rand -hex 24)"
        )
    return secrets


#: The longest duration there is, ten years: longer ones overflow somewhere, or were meant in another unit.
LONGEST_SECONDS = 10 * 365 * 86_400.0

Duration = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=LONGEST_SECONDS)]
PositiveDuration = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=LONGEST_SECONDS)]
Count = Annotated[int, Field(ge=1)]

#: A file, or none: an empty variable is what compose makes of one that is not set.
OptionalFile = Annotated[Path | None, BeforeValidator(lambda value: value or None)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RedisSettings(_Section):
    """Where the queue lies."""

    url: Annotated[str, Field(repr=False), AfterValidator(_redis_url)] = "redis://127.0.0.1:6379/0"
    """`redis://`, `rediss://` (TLS) or `unix://`."""
    connect_timeout: PositiveDuration = 2.0
    """How long to wait for a connection."""
    timeout: PositiveDuration = 5.0
    """How long to wait for an answer. Blocking reads of the workers stay below it."""
    ca_file: OptionalFile = None
    """Certificate authorities to trust beside the system's, in PEM. A `rediss://` server must have a certificate of
    one of them, for the host of the URL, before anything is sent to it."""
    cert_file: OptionalFile = None
    """The certificate (with its chain, in PEM) that we present to a `rediss://` server that asks for one."""
    key_file: OptionalFile = None
    """The private key of `cert_file`, if that file does not have it."""
    allow_insecure: bool = False
    """Permits `ssl_cert_reqs=none` and `ssl_check_hostname=false` in `url`: any server that answers then gets the
    password."""

    @model_validator(mode="after")
    def _tls_is_safe(self) -> Self:
        addresses.trust(self.url, self, "redis.allow_insecure (RELAY_REDIS__ALLOW_INSECURE)")
        return self


class BrokerSettings(_Section):
    """Where Celery's messages lie. They are doorbells only: losing them loses nothing."""

    url: Annotated[str, Field(repr=False), AfterValidator(_broker_url)] = ""
    """Celery's broker; empty means the Redis of `redis.url`."""
    report_queue: Annotated[str, Field(min_length=1)] = "celery"
    """The queue that `relay.report` is read from; "celery" is where `send_task` sends to unless told otherwise.
    On a broker shared with other Celery apps it must be a name of its own."""
    ca_file: OptionalFile = None
    """Certificate authorities to trust of a `rediss://` or `amqps://` broker, in PEM: beside the system's for
    `rediss://`, instead of them for `amqps://`. Its certificate is verified as that of `redis.url`."""
    cert_file: OptionalFile = None
    """The certificate (with its chain, in PEM) that we present to a broker that asks for one."""
    key_file: OptionalFile = None
    """The private key of `cert_file`, if that file does not have it."""
    allow_insecure: bool = False
    """Permits `ssl_cert_reqs=none` and `ssl_check_hostname=false` in `url`. With an empty `url`, what is not set of
    these four is taken from `redis`."""

    @model_validator(mode="after")
    def _tls_is_safe(self) -> Self:
        if self.url:
            addresses.trust(self.url, self, "broker.allow_insecure (RELAY_BROKER__ALLOW_INSECURE)")
        return self


class QueueSettings(_Section):
    """The queue that producers and workers share."""

    namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "relay"
    """First part of every key: `{relay:0}:inbox`."""
    max_backlog: Count = 1_000_000
    """Events that may wait (inbox and outboxes together) before producers are told that the queue is full."""
    max_event_bytes: Count = 65_536
    """The largest event, in bytes of its JSON body."""
    receipt_for: PositiveDuration = 900.0
    """How long a receipt is kept once its event has ended: delivered, dead, a duplicate, stale or superseded."""
    memory_watermark: Annotated[float, Field(gt=0, le=1)] = 0.9
    """The part of Redis's `maxmemory` past which producers are told that the queue is full: the workers need the
    rest to record what they do. Without a `maxmemory` it means nothing."""


class SpoolSettings(_Section):
    """Where `Producer` and `relay report` keep events while Redis is away."""

    directory: str = ""
    """A directory on a local disk; empty means that a Redis that is away is an error."""
    max_bytes: Count = 67_108_864
    """Bytes that may lie there before events are refused."""


class ProducerSettings(_Section):
    """How `relay report` and `GatewayProducer` report where Redis cannot be reached: through a gateway elsewhere."""

    gateway_url: Annotated[str, AfterValidator(_readable_url)] = ""
    """The gateway's URL; empty means that reports go to Redis."""
    gateway_token: SecretStr = SecretStr("")
    """The bearer token that the gateway gave us: one of its `gateway.token` or `gateway.tokens_file`."""
    gateway_token_file: Path | None = None
    """A file that holds that token; wins over `gateway_token`."""
    gateway_timeout: PositiveDuration = 30.0
    """How long a report may take in all, repetitions and pauses included."""
    gateway_ca_file: Path | None = None
    """Certificate authorities to trust instead of the usual ones."""
    gateway_allow_insecure: bool = False
    """Permits a token to go over `http://` to hosts other than this machine, in the clear."""

    @model_validator(mode="after")
    def _no_token_in_the_clear(self) -> Self:
        if not self.gateway_url:
            return self
        parts = urlsplit(self.gateway_url)
        if parts.username or parts.password:
            raise ValueError("gateway_url must not carry a user or password; use gateway_token or gateway_token_file")
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("gateway_url must be http:// or https:// with a host, and no query")
        has_token = bool(self.gateway_token.get_secret_value() or self.gateway_token_file)
        is_clear = parts.scheme == "http" and not is_loopback(parts.hostname)
        if has_token and is_clear and not self.gateway_allow_insecure:
            raise ValueError(
                f"gateway_url is http:// to {parts.hostname}, so the token would travel in the clear; use https:// "
                "or allow it with RELAY_PRODUCER__GATEWAY_ALLOW_INSECURE=true if the network is trusted"
            )
        return self

    def read_gateway_token(self) -> str:
        """Read the token, afresh from its file if it has one; "" if there is none."""
        return _read_token(self.gateway_token, self.gateway_token_file, "producer.gateway_token_file")


class ApiSettings(_Section):
    """The reporting API."""

    url: Annotated[str, AfterValidator(_readable_url)] = ""
    """Where events are POSTed to."""
    token: SecretStr = SecretStr("")
    """The bearer token."""
    token_file: Path | None = None
    """A file that holds the token; wins over `token`."""
    connect_timeout: PositiveDuration = 3.0
    """How long a connection to the API may take to be made."""
    timeout: PositiveDuration = 10.0
    """How long one POST may take in all, from connecting to the last byte of the answer."""
    rate_limit: Annotated[float, Field(ge=0)] = 0.0
    """POSTs a second, of all workers together; 0 for no limit."""
    burst: Count = 10
    """POSTs that may go out at once before `rate_limit` spaces them."""
    ca_file: Path | None = None
    """Certificate authorities to trust instead of the system's."""
    allow_insecure: bool = False
    """Permits `http://` to hosts other than this machine: the token then travels in the clear."""

    @model_validator(mode="after")
    def _no_token_in_the_clear(self) -> Self:
        if not self.url:
            return self
        parts = urlsplit(self.url)
        if parts.username or parts.password:
            raise ValueError("url must not carry a user or password; use token or token_file")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("url must be http:// or https:// with a host")
        if parts.scheme == "http" and not self.allow_insecure and not is_loopback(parts.hostname):
            raise ValueError(
                f"url is http:// to {parts.hostname}, so the token would travel in the clear; "
                "use https://, or set allow_insecure = true (RELAY_API__ALLOW_INSECURE) if the network is trusted"
            )
        return self

    def read_token(self) -> str:
        """Read the token, afresh from its file if it has one."""
        return _read_token(self.token, self.token_file, "api.token_file")


class DefaultsSettings(_Section):
    """What an event that does not say gets."""

    environment: Annotated[str, Field(min_length=1)] = "deployed"
    """The environment of events that name none."""
    platform: str = "linux/amd64"
    """The platform of events that name none, where no environment's rule says otherwise."""


class EnvironmentSettings(_Section):
    """What holds for the environments that a glob matches (`[environments."edge-*"]`)."""

    platform: str | None = None
    """The default platform there."""


class IntakeSettings(_Section):
    """Inbox to outboxes."""

    batch_size: Annotated[int, Field(ge=1, le=5000)] = 500
    """Entries read and committed together."""


class DeliverySettings(_Section):
    """Outboxes to API."""

    batch_size: Annotated[int, Field(ge=1, le=5000)] = 500
    """Entries of one environment that a drain has in hand at most."""
    linger: Duration = 0.0
    """How long a batch is held open to gather more before its first event is sent."""
    max_in_flight: Annotated[int, Field(ge=1, le=512)] = 32
    """POSTs under way at once in one drain, at most; fewer while the API pushes back."""
    max_attempts: Count = 12
    """Attempts before an event that keeps failing becomes a dead letter. None is used up by what is the destination's
    fault: a held destination, a bad token, a rate limit, a host that cannot be reached."""
    backoff_initial: PositiveDuration = 0.5
    """Upper bound of the first pause before an event is tried again; doubles each time."""
    backoff_max: PositiveDuration = 300.0
    """Upper bound of any such pause."""
    retry_after_max: PositiveDuration = 3600.0
    """The longest `Retry-After` that is honoured."""
    reassert_after: PositiveDuration = 86_400.0
    """An instance's digest that is reported again this long after its delivery is delivered again; or this long after
    it was accepted, if it is not delivered yet."""
    history: Literal["every", "latest"] = "every"
    """`every` accepted change is delivered, in order; with `latest` a newer event of an instance replaces an older
    one that is not delivered yet."""
    max_clock_skew: PositiveDuration = 300.0
    """How far an event's `time` may be ahead of Redis's clock. One that is further ahead comes from a wrong clock: it
    is counted and shown, and counts as the whole second of the arrival, so that it makes no later event stale."""
    max_age: PositiveDuration = 2_592_000.0
    """An event that could not be delivered for this long becomes a dead letter, `expired`."""
    forget_after: PositiveDuration = 34_560_000.0
    """An instance is forgotten when it was not reported for this long, and so is an environment of which no instance
    is left: inventory, status, console and metrics name it no more. Longer than the longest time between two
    deployments of a service that only its pipeline reports; `relay forget` is for what is known to be gone."""


class WorkerSettings(_Section):
    """How the workers share the work."""

    concurrency: Count = 4
    """Processes of one worker that run drains."""
    lease: PositiveDuration = 15.0
    """How long a drain that gives no sign of life keeps its work from others; at least a second more than
    `api.timeout`."""
    budget: PositiveDuration = 5.0
    """How long a drain runs before it rings for its successor."""
    stay: Duration = 0.02
    """How long a drain that has nothing left waits for more before it lets go."""
    sweep: PositiveDuration = 5.0
    """How often each worker looks for work that nobody was called to."""
    deaf_after: PositiveDuration = 60.0
    """A worker that hears nothing from a broker that takes its messages leaves after this long, so that its
    supervisor starts another."""
    read_only_after: PositiveDuration = 60.0
    """Exit with code 70, to be restarted by the supervisor, if Redis refuses writes on every new connection for this
    long: a replica, a primary without its replicas, a cluster node without the slot."""


class LogSettings(_Section):
    """What the worker and the gateway write to standard error."""

    format: Literal["auto", "json", "text"] = "auto"
    """`json` is a line of JSON for each thing that happens, `text` is for people; `auto` is text on a terminal and
    JSON elsewhere."""
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The least that is written. INFO has a line for each drain, DEBUG one for each attempt at an event."""


def _registry(text: str) -> str:
    """Check a registry, and a path in it, by an image that would be of it."""
    registry = text.strip().strip("/")
    if not registry:
        return ""
    url = f"{registry}/app@sha256:{'0' * 64}"
    try:
        read = parse_image(url).url
    except InvalidImage as error:
        raise ValueError(f"is not a registry such as ghcr.io/acme: an image of it {error.reason}") from None
    if not read.startswith(f"{registry.lower()}/"):
        raise ValueError("must begin with a registry's host, such as ghcr.io/acme")
    return registry


#: A registry, and a path in it if there is one: `ghcr.io/acme`.
Registry = Annotated[str, AfterValidator(_registry)]


class GatewaySettings(_Section):
    """The HTTP side."""

    host: str = "127.0.0.1"
    """Address to listen on; `*` is every address of the machine, IPv4 and IPv6."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port to listen on; 0 picks a free one."""
    token: SecretStr = SecretStr("")
    """The bearer token that producers must send; required to listen on anything but loopback, or else a
    `tokens_file`."""
    tokens_file: Path | None = None
    """A TOML file with more tokens, each with the environments it may report for; read again when it changes."""
    admission: Literal["open", "token", "off"] = "token"
    """Which admission reviews are reported: with `token` those that have a token or `admission_secret_file`'s secret
    (all of them on loopback, without a token or secret), with `open` all of them, with `off` none."""
    admission_secret_file: Path | None = None
    """A file with a secret for `/admission/SECRET`, because Kubernetes' API server sends no token. At least 16
    letters, digits or `-._~`; a second line may have a second secret. Read again when it changes."""
    metrics: Literal["open", "token", "off"] = "token"
    """Who may read `/metrics`, which names environments: with `token` clients that have a token (every client on
    loopback, without a token), with `open` every client, with `off` none."""
    hosts: tuple[Annotated[str, AfterValidator(_host_name)], ...] = ()
    """Further names under which the gateway is reached, those of a proxy before it. On loopback without a token,
    requests to other names than these and this machine's are refused. The variable is a JSON array."""
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    """Addresses or networks of the proxies whose `X-Forwarded-For` names the client, for the console's lock-out and
    log. The variable is a JSON array."""
    default_registry: Registry = ""
    """The registry, and a path in it, of CDEvents' artifacts that name none, such as `ghcr.io/acme`; empty refuses
    them. A token of the `tokens_file` may have its own, `registry`."""
    tls_cert: Path | None = None
    """A certificate chain in PEM: with it the gateway speaks HTTPS. Read again when it changes."""
    tls_key: Path | None = None
    """The certificate's private key."""
    operator_token: SecretStr = SecretStr("")
    """What operators sign in to the console with, at `/console`; without one there is no console. At least 16
    characters, and another than `token`."""

    @model_validator(mode="after")
    def _no_open_door(self) -> Self:
        if not self.asks_for_tokens and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} is reachable from elsewhere: set a token for producers, or a tokens_file"
            )
        return self

    @model_validator(mode="after")
    def _secret_has_an_effect(self) -> Self:
        if self.admission_secret_file is not None and self.admission != "token":
            raise ValueError(
                f'admission = "{self.admission}" makes admission_secret_file useless: remove one of them'
            )
        return self

    @property
    def asks_for_tokens(self) -> bool:
        """Whether producers have tokens; without any, every client on this machine may report."""
        return bool(self.token.get_secret_value() or self.tokens_file)

    @model_validator(mode="after")
    def _operators_have_a_key_of_their_own(self) -> Self:
        token = self.operator_token.get_secret_value()
        if token and len(token) < SHORTEST_OPERATOR_TOKEN:
            raise ValueError(f"operator_token must have at least {SHORTEST_OPERATOR_TOKEN} characters")
        if token and token == self.token.get_secret_value():
            raise ValueError("operator_token must be another than token, or every producer were an operator")
        return self

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: set both, or neither for plain HTTP")
        return self


class MetricsSettings(_Section):
    """What Prometheus scrapes: `relay metrics`, and the gateway at `/metrics`."""

    host: str = "127.0.0.1"
    """Address that `relay metrics` listens on; `*` is every address of the machine, IPv4 and IPv6. Every client that
    reaches it may read it: environments' names, but no events."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9780
    """Port that `relay metrics` listens on; 0 picks a free one."""
    environments: Annotated[int, Field(ge=1, le=1000)] = 50
    """Environments with series of their own, those with the most deliveries and the most waiting; the others are
    summed up as `other`."""


#: What the templates of `[kubernetes]` may ask for.
_KUBERNETES_PLACEHOLDERS = ("cluster", "namespace", "workload", "kind", "container")


def kubernetes_template(text: str) -> Template:
    """Read a template of `[kubernetes]`; a `ValueError` that names the placeholders there are, if it has another."""
    return Template.parse(text, known=_KUBERNETES_PLACEHOLDERS, maps=("namespace_labels", "pod_labels"))


def _kubernetes_template(text: str) -> str:
    kubernetes_template(text)
    return text


KubernetesTemplate = Annotated[str, AfterValidator(_kubernetes_template)]

#: The `kubernetes.cluster` of a cluster that has no name on purpose.
NO_CLUSTER_NAME = "none"

#: Longest `kubernetes.cluster`, in bytes of UTF-8: it is the `source` of events.
_MAX_CLUSTER_BYTES = 255


def _cluster(name: str) -> str:
    """Check a cluster's name: the `source` of each of its events, and a part of their environments' names."""
    name = name.strip()
    if not name.isprintable():
        raise ValueError("must not have control characters or line breaks")
    if len(name.encode()) > _MAX_CLUSTER_BYTES:
        raise ValueError(f"must have at most {_MAX_CLUSTER_BYTES} bytes in UTF-8")
    return NO_CLUSTER_NAME if name.lower() == NO_CLUSTER_NAME else name


class KubernetesSettings(_Section):
    """What is reported of a cluster's pods, by the admission webhook and the watcher alike.

    Templates may have `{cluster}`, `{namespace}`, `{workload}`, `{kind}` (of the workload), `{container}`,
    `{namespace_labels[KEY]}` and `{pod_labels[KEY]}`.
    """

    cluster: Annotated[str, AfterValidator(_cluster)] = ""
    """The cluster's name, another one for each cluster: the `source` of its events, and `{cluster}`. The watcher and
    the webhook need it: clusters that share a name overwrite each other's reports. `none` is for the only cluster of
    a relay: its events have no source, and its environments are called by their namespaces alone."""
    name_template: KubernetesTemplate = "{namespace}/{workload}/{container}"
    """The `image.name` of a container's event. What it does not tell apart is one instance, if the image's repository
    is the same too."""
    environment_template: KubernetesTemplate = ""
    """Its `environment.name`; empty is `{cluster}/{namespace}`, or `{namespace}` where `cluster` is `none`."""
    ignore_namespaces: tuple[str, ...] = ("kube-*", "openshift-*", "gke-managed-*")
    """Globs of namespaces of which nothing is reported: those that the cluster keeps for itself. The variable is a
    JSON array."""
    ignore_kinds: tuple[str, ...] = ()
    """Kinds of workloads of which nothing is reported: `["Workflow", "TaskRun", "Job"]`. Compared, in any case, with
    the kind of the pod's controller and with `{kind}`; `Pod` is a pod without a controller. The variable is a JSON
    array."""
    namespace: str = ""
    """The one namespace that the watcher looks at; empty is all of them."""
    selector: str = ""
    """The label selector of the pods that the watcher looks at; empty is all of them."""
    snapshot_interval: PositiveDuration = 3600.0
    """How often the watcher lists all pods, beside following their changes."""
    page_size: Annotated[int, Field(ge=1, le=5000)] = 500
    """Objects that the watcher asks for in one page of a listing."""
    silence: PositiveDuration = 90.0
    """How long a watch may say nothing before it is taken for dead and made anew. API servers send a bookmark about
    once a minute."""
    settle: PositiveDuration = 10.0
    """How soon the watcher lists all pods again once a rollout was undone."""
    heartbeat_file: Path | None = None
    """A file that the watcher touches for as long as it is alive, at least every `silence`."""

    @property
    def derived_environment_template(self) -> str:
        """What an empty `environment_template` means."""
        return "{cluster}/{namespace}" if self.cluster_name else "{namespace}"

    @property
    def cluster_name(self) -> str:
        """The cluster's name, "" if it has none on purpose; `ConfigurationError` if none was set."""
        if not self.cluster:
            raise ConfigurationError(
                "the cluster has no name: set CLUSTER_NAME (kubernetes.cluster) to a name that no other cluster has, "
                f"or to {NO_CLUSTER_NAME!r} if this is the only cluster that reports to this relay"
            )
        return "" if self.cluster == NO_CLUSTER_NAME else self.cluster


class Settings(BaseSettings):
    """All settings. `Settings.load()` is the way to get them; it turns faults into `ConfigurationError`."""

    model_config = SettingsConfigDict(
        env_prefix="RELAY_", env_nested_delimiter="__", frozen=True, extra="forbid", validate_default=True
    )

    redis: RedisSettings = RedisSettings()
    broker: BrokerSettings = BrokerSettings()
    queue: QueueSettings = QueueSettings()
    spool: SpoolSettings = SpoolSettings()
    producer: ProducerSettings = ProducerSettings()
    api: ApiSettings = ApiSettings()
    defaults: DefaultsSettings = DefaultsSettings()
    environments: dict[str, EnvironmentSettings] = {}
    intake: IntakeSettings = IntakeSettings()
    delivery: DeliverySettings = DeliverySettings()
    worker: WorkerSettings = WorkerSettings()
    gateway: GatewaySettings = GatewaySettings()
    metrics: MetricsSettings = MetricsSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _lease_outlives_requests(self) -> Self:
        if self.worker.lease < self.api.timeout + LEASE_MARGIN_SECONDS:
            raise ValueError(
                f"worker.lease ({self.worker.lease:g} s) must be at least {LEASE_MARGIN_SECONDS:g} s longer than "
                f"api.timeout ({self.api.timeout:g} s), or a paused drain's request could overtake its successor's"
            )
        return self

    @model_validator(mode="after")
    def _broker_tls_is_safe(self) -> Self:
        try:
            addresses.trust(self._broker_url(), self.broker_tls)
        except ValueError as error:
            raise ValueError(f"broker: {error}") from None
        return self

    @model_validator(mode="after")
    def _waits_fit(self) -> Self:
        if self.delivery.linger > self.worker.budget / 2:
            raise ValueError(
                f"delivery.linger ({self.delivery.linger:g} s) must be at most half of worker.budget "
                f"({self.worker.budget:g} s), or a drain would end before it sends"
            )
        if self.worker.stay > self.redis.timeout / 2:
            raise ValueError(
                f"worker.stay ({self.worker.stay:g} s) must be at most half of redis.timeout "
                f"({self.redis.timeout:g} s), or waiting for more would look like a Redis that hangs"
            )
        return self

    @property
    def destination(self) -> str:
        """The name of the destination that events are delivered to."""
        return DEFAULT_DESTINATION

    @property
    def broker_url(self) -> str:
        """Celery's broker as kombu is given it: its own, or the queue's Redis."""
        return self.broker_address.url

    @property
    def broker_address(self) -> addresses.ForKombu:
        """Celery's broker, with the TLS options of every connection to it."""
        return addresses.for_kombu(self._broker_url(), self.broker_tls)

    @property
    def broker_tls(self) -> addresses.Section:
        """The broker's TLS settings: with an empty `broker.url`, those of `redis` and what differs for Celery."""
        if self.broker.url:
            return self.broker
        own = self.broker.model_dump(include={"ca_file", "cert_file", "key_file"}, exclude_none=True)
        without = {"key_file": None} if "cert_file" in own else {}
        return self.redis.model_copy(update={**without, **own})

    def check_broker_files(self) -> None:
        """Raise `ConfigurationError` if a file of the broker's TLS cannot be read."""
        addresses.check_files(self._broker_url(), self.broker_tls, "broker" if self.broker.url else "redis")

    def _broker_url(self) -> str:
        return self.broker.url or self.redis.url.replace(";", "%3B")  # kombu splits a list at ;

    @property
    def expects_reviews(self) -> bool:
        """Whether reviews were meant to report: by a setting of the gateway's admission, or a template's `{cluster}`.

        The defaults alone do not say so: a gateway without Kubernetes has them too.
        """
        if self.gateway.admission == "off":
            return False
        is_chosen = any(
            getattr(self.gateway, name) != field.default
            for name, field in GatewaySettings.model_fields.items()
            if name.startswith("admission")
        )
        return is_chosen or "{cluster}" in self.kubernetes.name_template + self.kubernetes.environment_template

    def require_api(self) -> ApiSettings:
        """Return the API's settings, or say what is missing to deliver anything."""
        if not self.api.url:
            raise ConfigurationError(
                "no API to deliver to: set RELAY_API_URL, or api.url in the file RELAY_CONFIG names"
            )
        if not self.api.read_token():
            raise ConfigurationError("no token for the API: set RELAY_API_TOKEN or RELAY_API_TOKEN_FILE")
        return self.api

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, environment, file: in this order."""
        sources = [init_settings, env_settings, _ShortNames(settings_cls)]
        if path := os.environ.get("RELAY_CONFIG"):
            sources.append(_TomlFile(settings_cls, toml_file=path))
        return tuple(sources)

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Read all settings, or raise `ConfigurationError` naming each fault and where to mend it."""
        path = os.environ.get("RELAY_CONFIG")
        try:
            if path and not Path(path).is_file():
                raise ConfigurationError(f"RELAY_CONFIG names {path}, which is no file")
            _refuse_unknown_sections(cls)
            return cls(**overrides)
        except OSError as error:
            raise ConfigurationError(f"RELAY_CONFIG names {path}, which cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise ConfigurationError("\n".join(map(str, faults(error)))) from None
        except SettingsError as error:  # JSON in a variable that does not parse
            raise ConfigurationError(_unreadable_variables(cls) or f"the variables cannot be read: {error}") from None
        except ValueError as error:  # TOML that does not parse
            raise ConfigurationError(
                f"the configuration ({path or 'environment'}) cannot be read: {error}"
            ) from error


class _TomlFile(TomlConfigSettingsSource):
    """The TOML file, with a byte order mark before it or not."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return tomllib.loads(file_path.read_text(encoding="utf-8-sig"))


class _ShortNames(PydanticBaseSettingsSource):
    """The environment variables without a double underscore."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - abstract
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, (section, key) in SHORT_NAMES.items():
            if value := os.environ.get(name):
                found.setdefault(section, {}).setdefault(key, value)
        return found


def _refuse_unknown_sections(settings_cls: type[Settings]) -> None:
    """Say so if a variable names no section: pydantic-settings would pass it over, and its key with it."""
    for name in os.environ:
        section, separator, _ = name.removeprefix("RELAY_").lower().partition("__")
        if name.startswith("RELAY_") and separator and section not in settings_cls.model_fields:
            known = ", ".join(settings_cls.model_fields)
            raise ConfigurationError(f"{name} names no section of the settings; there are: {known}")


def _unreadable_variables(settings_cls: type[Settings]) -> str:
    """Name each variable of a list, or of a whole section, that is no JSON, and repeat none of it; '' without any."""
    found = []
    for name, value in sorted(os.environ.items()):
        section, _, key = name.upper().removeprefix("RELAY_").lower().partition("__")
        its = settings_cls.model_fields.get(section)
        if not name.upper().startswith("RELAY_") or its is None:
            continue
        setting = its.annotation.model_fields.get(key) if key and its.annotation else None
        if key and (setting is None or get_origin(setting.annotation) is not tuple):
            continue
        try:
            from_json(value)
        except ValueError:
            example = '["first", "second"]' if key else "an object with its keys"
            found.append(f"{name} must be JSON: {example}")
    return "\n".join(found)


class Fault(NamedTuple):
    """What is wrong with a setting, or a section, or (without a path) with all of them together."""

    path: tuple[str, ...]
    what: str
    is_unknown: bool = False

    @property
    def setting(self) -> str:
        """The setting as a file has it."""
        return ".".join(self.path)

    def __str__(self) -> str:
        """Write it on a line, with the setting's variable."""
        short = (name for name, its in SHORT_NAMES.items() if its == self.path)
        variable = next(short, f"RELAY_{'__'.join(self.path)}".upper())
        where = f"{self.setting} ({variable})" if len(self.path) == 2 else self.setting  # noqa: PLR2004 - section, key
        return f"{where}: {self.what}" if where else self.what


def faults(error: ValidationError) -> list[Fault]:
    """Return each fault of settings."""
    found = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        is_unknown = fault["type"] == "extra_forbidden"
        what = "is not a setting" if is_unknown else fault["msg"].removeprefix("Value error, ")
        found.append(Fault(tuple(map(str, fault["loc"])), what, is_unknown))
    return found
