"""All settings: read once, checked at start.

Three sources, the earlier takes precedence: arguments, environment variables (`RELAY_<SECTION>__<KEY>`, and those
of `SHORT_NAMES`), and the TOML file that `RELAY_CONFIG` names. A duration is a number of seconds, or a number with a
unit ("250ms", "30s", "5m", "24h", "90d"); here it is float seconds.

The text below a setting is its only description: docs/settings.md and config/relay.toml are generated from it.
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

#: Short environment variable → its setting. The ATOMIST_ names and CLUSTER_NAME are those of the deployment API's own
#: Kubernetes controller, so that its manifests work unchanged.
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

#: Schemes of `redis.url`.
REDIS_SCHEMES = ("redis://", "rediss://", "unix://")

#: Schemes of brokers whose URLs have the common grammar. Others have their own, and `;` separates a list.
_COMMON_BROKERS = (*REDIS_SCHEMES, "amqp://", "amqps://", "pyamqp://")

#: Minimum margin of the lease over the longest request. With less, a request of a run that was paused could still be
#: in flight when its successor sends the same instance.
LEASE_MARGIN_SECONDS = 1.0

#: Minimum characters of the operators' token, which people type: a token of this length is not guessed.
SHORTEST_OPERATOR_TOKEN = 16

#: A name, an IPv4 address, or an IPv6 address in brackets; optionally with a port.
_HOST_NAME = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

#: A secret that is one segment of a path: no character needs encoding, and it is too long to be guessed.
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
    """Check that a URL can be split; urllib's own message may repeat a part of the password."""
    try:
        _ = urlsplit(url).port  # raises for a bad port
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
    """Check that no password ends the authority early: a part of it would be read as the host, the rest as a path."""
    parts = urlsplit(_readable_url(url))
    if parts.scheme != "unix" and "@" in parts.path + parts.query + parts.fragment:
        raise ValueError(addresses.UNREADABLE)
    return url


def _network(text: str) -> str:
    """Check that the text is an IP address or a network (CIDR)."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is neither an IP address nor a network such as 10.0.0.0/8") from None
    return text


def _host_name(text: str) -> str:
    """Check that a `Host` header can have the text, which excludes URLs, patterns and the empty string."""
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
    """Parse the text of `gateway.admission_secret_file`, a secret a line; errors do not repeat them."""
    secrets = [line.strip() for line in text.splitlines() if line.strip()]
    if not secrets or not all(_PATH_SECRET.fullmatch(secret) for secret in secrets):
        raise ConfigurationError(
            "each line must be a secret of 16 to 256 letters, digits or -._~ (make one with: openssl rand -hex 24)"
        )
    return secrets


#: Maximum duration, ten years: a longer one overflows, or is meant in another unit.
LONGEST_SECONDS = 10 * 365 * 86_400.0

Duration = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=LONGEST_SECONDS)]
PositiveDuration = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=LONGEST_SECONDS)]
Count = Annotated[int, Field(ge=1)]

#: A file or None; Compose turns a variable that is not set into an empty one.
OptionalFile = Annotated[Path | None, BeforeValidator(lambda value: value or None)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RedisSettings(_Section):
    """The Redis of the queue."""

    url: Annotated[str, Field(repr=False), AfterValidator(_redis_url)] = "redis://127.0.0.1:6379/0"
    """URL of the queue's Redis: `redis://`, `rediss://` (TLS) or `unix://`."""
    connect_timeout: PositiveDuration = 2.0
    """Time-out of a connection attempt."""
    timeout: PositiveDuration = 5.0
    """Time-out of a command. Blocking reads of the workers are shorter."""
    ca_file: OptionalFile = None
    """Certificate authorities to trust besides the system's, in PEM. The certificate of a `rediss://` server must be
    issued by one of them for the host of the URL; nothing is sent to it before."""
    cert_file: OptionalFile = None
    """Client certificate with its chain, in PEM, for a `rediss://` server that asks for one."""
    key_file: OptionalFile = None
    """Private key of `cert_file`, if that file does not contain it."""
    allow_insecure: bool = False
    """Allow `ssl_cert_reqs=none` and `ssl_check_hostname=false` in `url`. Any server that answers then gets the
    password."""

    @model_validator(mode="after")
    def _tls_is_safe(self) -> Self:
        addresses.trust(self.url, self, "redis.allow_insecure (RELAY_REDIS__ALLOW_INSECURE)")
        return self


class BrokerSettings(_Section):
    """The broker of Celery's messages. They are wake-ups only: losing them loses no event."""

    url: Annotated[str, Field(repr=False), AfterValidator(_broker_url)] = ""
    """URL of Celery's broker. Empty means the Redis of `redis.url`."""
    report_queue: Annotated[str, Field(min_length=1)] = "celery"
    """Queue that the task `relay.report` is read from. The default is the queue that `send_task` uses by default. On
    a broker shared with other Celery apps, set a name of its own."""
    ca_file: OptionalFile = None
    """Certificate authorities to trust for a `rediss://` or `amqps://` broker, in PEM: besides the system's for
    `rediss://`, instead of them for `amqps://`. Its certificate is verified as that of `redis.url`."""
    cert_file: OptionalFile = None
    """Client certificate with its chain, in PEM, for a broker that asks for one."""
    key_file: OptionalFile = None
    """Private key of `cert_file`, if that file does not contain it."""
    allow_insecure: bool = False
    """Allow `ssl_cert_reqs=none` and `ssl_check_hostname=false` in `url`. If `url` is empty, those of these four
    settings that are not set are taken from `redis`."""

    @model_validator(mode="after")
    def _tls_is_safe(self) -> Self:
        if self.url:
            addresses.trust(self.url, self, "broker.allow_insecure (RELAY_BROKER__ALLOW_INSECURE)")
        return self


class QueueSettings(_Section):
    """The queue that producers and workers share."""

    namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "relay"
    """First part of every Redis key: `{relay:0}:inbox`. Two relays on one Redis need two."""
    max_backlog: Count = 1_000_000
    """Maximum events in inbox and outboxes together. Beyond it, producers get `QueueFull`."""
    max_event_bytes: Count = 65_536
    """Maximum size of an event, in bytes of its JSON body."""
    receipt_for: PositiveDuration = 900.0
    """How long a receipt is kept after its event has ended: delivered, dead, duplicate, stale or superseded."""
    memory_watermark: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Fraction of Redis's `maxmemory` beyond which producers get `QueueFull`: the workers need the rest to record
    outcomes. No effect without `maxmemory`."""


class SpoolSettings(_Section):
    """Events of `Producer` and `relay report` on disk while Redis is unavailable."""

    directory: str = ""
    """Directory of the spool, on a local disk. Empty means no spool: an unavailable Redis is then an error."""
    max_bytes: Count = 67_108_864
    """Maximum bytes of all files there. Beyond it, events are refused."""


class ProducerSettings(_Section):
    """Reports of `relay report` and `GatewayProducer` through a gateway, where Redis is not reachable."""

    gateway_url: Annotated[str, AfterValidator(_readable_url)] = ""
    """URL of the gateway. Empty means that reports go to Redis."""
    gateway_token: SecretStr = SecretStr("")
    """Bearer token that the gateway accepts: one of its `gateway.token` or `gateway.tokens_file`."""
    gateway_token_file: Path | None = None
    """File with that token; takes precedence over `gateway_token`."""
    gateway_timeout: PositiveDuration = 30.0
    """Time-out of a report, including its retries and the pauses between them."""
    gateway_ca_file: Path | None = None
    """Certificate authorities to trust instead of the usual ones."""
    gateway_allow_insecure: bool = False
    """Allow a token over `http://` to hosts other than this machine, which sends it unencrypted."""

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
        """Return the token, read from its file if there is one; "" if there is no token."""
        return _read_token(self.gateway_token, self.gateway_token_file, "producer.gateway_token_file")


class ApiSettings(_Section):
    """The deployment API."""

    url: Annotated[str, AfterValidator(_readable_url)] = ""
    """URL that events are POSTed to."""
    token: SecretStr = SecretStr("")
    """Bearer token."""
    token_file: Path | None = None
    """File with the token; takes precedence over `token`. Read again by each delivery run: a new token needs no
    restart."""
    connect_timeout: PositiveDuration = 3.0
    """Time-out of a connection attempt."""
    timeout: PositiveDuration = 10.0
    """Time-out of a POST, from connecting to the last byte of the response."""
    rate_limit: Annotated[float, Field(ge=0)] = 0.0
    """Maximum POSTs a second of all workers together; 0 means no limit."""
    burst: Count = 10
    """POSTs that may be sent at once before `rate_limit` spaces them."""
    ca_file: Path | None = None
    """Certificate authorities to trust instead of the system's."""
    allow_insecure: bool = False
    """Allow `http://` to hosts other than this machine, which sends the token unencrypted."""

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
        """Return the token, read from its file if there is one."""
        return _read_token(self.token, self.token_file, "api.token_file")


class DefaultsSettings(_Section):
    """Defaults of an event's fields."""

    environment: Annotated[str, Field(min_length=1)] = "deployed"
    """Environment of events that name none."""
    platform: str = "linux/amd64"
    """Platform of events that name none, unless `environments` has another for theirs."""


class EnvironmentSettings(_Section):
    """Settings of the environments that match a glob, such as `[environments."edge-*"]`."""

    platform: str | None = None
    """Default platform of these environments."""


class IntakeSettings(_Section):
    """Intake: from the inbox to the outboxes."""

    batch_size: Annotated[int, Field(ge=1, le=5000)] = 500
    """Maximum entries that are read and committed together."""


class DeliverySettings(_Section):
    """Delivery: from the outboxes to the destination."""

    batch_size: Annotated[int, Field(ge=1, le=5000)] = 500
    """Maximum entries of one environment that a run has claimed."""
    linger: Duration = 0.0
    """How long a run waits for more events before it sends the first one of a batch."""
    max_in_flight: Annotated[int, Field(ge=1, le=512)] = 32
    """Maximum concurrent POSTs of one run. The concurrency limit lowers it while the destination pushes back."""
    max_attempts: Count = 12
    """Attempts before an event that keeps failing becomes a dead letter. Failures of the destination use up none: an
    open circuit breaker, a bad token, a rate limit, a host that is not reachable."""
    backoff_initial: PositiveDuration = 0.5
    """Upper bound of the first pause before a retry. It doubles with each attempt."""
    backoff_max: PositiveDuration = 300.0
    """Upper bound of any pause before a retry."""
    retry_after_max: PositiveDuration = 3600.0
    """Maximum `Retry-After` that is respected; longer ones are cut to it."""
    reassert_after: PositiveDuration = 86_400.0
    """Deliver a repeated digest again if its last delivery is this long ago, or if it is still undelivered, its
    acceptance. This restores the state of a destination that lost data."""
    history: Literal["every", "latest"] = "every"
    """`every` delivers each accepted change, in order. With `latest` a newer event of an instance replaces an older
    one that is not delivered yet."""
    max_clock_skew: PositiveDuration = 300.0
    """How far an event's `time` may be ahead of Redis's clock. Beyond it the producer's clock is wrong: the event is
    counted, and gets the whole second of its arrival as its time, so that it makes no later event stale."""
    max_age: PositiveDuration = 2_592_000.0
    """How long an event may stay undelivered before it becomes a dead letter, `expired`."""
    forget_after: PositiveDuration = 34_560_000.0
    """How long an instance is remembered after its last report, and an environment after its last instance. Then
    inventory, status, console and metrics no longer show it. Set it longer than the longest time between two
    deployments of a service that only its pipeline reports; `relay forget` removes instances at once."""


class WorkerSettings(_Section):
    """The runs of the workers."""

    concurrency: Count = 4
    """Processes of one worker that execute runs."""
    lease: PositiveDuration = 15.0
    """How long a run keeps its lease without renewing it; then another run may take over. At least a second longer
    than `api.timeout`."""
    budget: PositiveDuration = 5.0
    """How long a run lasts before it sends a wake-up for its successor and ends."""
    stay: Duration = 0.02
    """How long a run without entries waits for more before it releases its lease."""
    sweep: PositiveDuration = 5.0
    """Interval at which each worker wakes up work that has no wake-up and no lease."""
    deaf_after: PositiveDuration = 60.0
    """Exit, to be restarted by the supervisor, if the broker accepts messages but delivers none for this long."""
    read_only_after: PositiveDuration = 60.0
    """Exit with code 70, to be restarted by the supervisor, if Redis refuses writes on every new connection for this
    long: a replica, a primary without its replicas, a cluster node without the slot."""


class LogSettings(_Section):
    """What worker and gateway log to standard error."""

    format: Literal["auto", "json", "text"] = "auto"
    """`json` writes a line of JSON for each event, `text` is for people. `auto` is `text` on a terminal and `json`
    elsewhere."""
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lowest level that is logged. INFO has a line for each run, DEBUG one for each attempt."""


def _registry(text: str) -> str:
    """Check a registry, optionally with a path, by parsing an image of it."""
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


#: A registry, optionally with a path: `ghcr.io/acme`.
Registry = Annotated[str, AfterValidator(_registry)]


class GatewaySettings(_Section):
    """The HTTP gateway."""

    host: str = "127.0.0.1"
    """Address to listen on. `*` is every address of the machine, IPv4 and IPv6."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port to listen on; 0 picks a free one."""
    token: SecretStr = SecretStr("")
    """Bearer token of producers. This or `tokens_file` is required to listen on any address but loopback."""
    tokens_file: Path | None = None
    """TOML file with more tokens, each with the environments that it may report for. Read again when it changes."""
    admission: Literal["open", "token", "off"] = "token"
    """Admission reviews that are reported. `token`: those with a token or the secret of `admission_secret_file` (all
    of them on loopback without tokens and secret). `open`: all of them. `off`: none."""
    admission_secret_file: Path | None = None
    """File with a secret for the path `/admission/SECRET`, because Kubernetes' API server sends no token. At least 16
    letters, digits or `-._~`; a second line may have a second secret. Read again when it changes."""
    metrics: Literal["open", "token", "off"] = "token"
    """Clients that may read `/metrics`, which shows the names of environments. `token`: those with a token (every
    client on loopback without tokens). `open`: every client. `off`: none."""
    hosts: tuple[Annotated[str, AfterValidator(_host_name)], ...] = ()
    """More names of the gateway, such as those of a proxy before it. On loopback without a token, requests to names
    other than these and this machine's are refused, against DNS rebinding. The variable is a JSON array."""
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    """Addresses or networks of proxies whose `X-Forwarded-For` names the client, for the console's lock-out and log.
    The variable is a JSON array."""
    default_registry: Registry = ""
    """Registry, optionally with a path, of CDEvents' artifacts that name none, such as `ghcr.io/acme`. Empty means
    that they are refused. A token of the `tokens_file` may have its own, `registry`."""
    tls_cert: Path | None = None
    """Certificate chain in PEM, with which the gateway serves HTTPS. Read again when it changes."""
    tls_key: Path | None = None
    """Private key of the certificate."""
    operator_token: SecretStr = SecretStr("")
    """Token with which operators sign in to the console at `/console`; without one there is no console. At least 16
    characters, and different from `token`."""

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
        """Whether producers need a token; if not, every client on this machine may report."""
        return bool(self.token.get_secret_value() or self.tokens_file)

    @model_validator(mode="after")
    def _operators_have_a_key_of_their_own(self) -> Self:
        token = self.operator_token.get_secret_value()
        if token and len(token) < SHORTEST_OPERATOR_TOKEN:
            raise ValueError(f"operator_token must have at least {SHORTEST_OPERATOR_TOKEN} characters")
        if token and token == self.token.get_secret_value():
            raise ValueError("operator_token must differ from token, or every producer is an operator")
        return self

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: set both, or neither for plain HTTP")
        return self


class MetricsSettings(_Section):
    """Metrics for Prometheus: `relay metrics`, and the gateway's `/metrics`."""

    host: str = "127.0.0.1"
    """Address that `relay metrics` listens on. `*` is every address of the machine, IPv4 and IPv6. Every client that
    can connect may read the names of environments, but no events."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9780
    """Port that `relay metrics` listens on; 0 picks a free one."""
    environments: Annotated[int, Field(ge=1, le=1000)] = 50
    """Maximum environments with series of their own, those with the most deliveries and waiting events. The others
    are summed up as `other`."""


#: Placeholders of the templates of `[kubernetes]`.
_KUBERNETES_PLACEHOLDERS = ("cluster", "namespace", "workload", "kind", "container")


def kubernetes_template(text: str) -> Template:
    """Parse a template of `[kubernetes]`; raise a `ValueError` with the known placeholders if it has another."""
    return Template.parse(text, known=_KUBERNETES_PLACEHOLDERS, maps=("namespace_labels", "pod_labels"))


def _kubernetes_template(text: str) -> str:
    kubernetes_template(text)
    return text


KubernetesTemplate = Annotated[str, AfterValidator(_kubernetes_template)]

#: `kubernetes.cluster` of a cluster that deliberately has no name.
NO_CLUSTER_NAME = "none"

#: Maximum bytes of `kubernetes.cluster` in UTF-8, those of an event's `source`.
_MAX_CLUSTER_BYTES = 255


def _cluster(name: str) -> str:
    """Check a cluster's name, which becomes the `source` of its events and a part of their environments' names."""
    name = name.strip()
    if not name.isprintable():
        raise ValueError("must not have control characters or line breaks")
    if len(name.encode()) > _MAX_CLUSTER_BYTES:
        raise ValueError(f"must have at most {_MAX_CLUSTER_BYTES} bytes in UTF-8")
    return NO_CLUSTER_NAME if name.lower() == NO_CLUSTER_NAME else name


class KubernetesSettings(_Section):
    """Events of a cluster's pods, for the admission webhook and the watcher.

    Placeholders of templates: `{cluster}`, `{namespace}`, `{workload}`, `{kind}` (of the workload), `{container}`,
    `{namespace_labels[KEY]}` and `{pod_labels[KEY]}`.
    """

    cluster: Annotated[str, AfterValidator(_cluster)] = ""
    """Name of the cluster, unique among those that report to one relay: the `source` of its events, and `{cluster}`.
    Watcher and webhook require it, because clusters that share a name overwrite each other's reports. `none` is for
    the only cluster of a relay: its events have no source, and its environments are named after their namespaces
    alone."""
    name_template: KubernetesTemplate = "{namespace}/{workload}/{container}"
    """`image.name` of a container's event. Containers with one name and one image repository are one instance."""
    environment_template: KubernetesTemplate = ""
    """`environment.name` of a container's event. Empty means `{cluster}/{namespace}`, or `{namespace}` if `cluster`
    is `none`."""
    ignore_namespaces: tuple[str, ...] = ("kube-*", "openshift-*", "gke-managed-*")
    """Globs of namespaces that are not reported; by default those of the cluster itself. The variable is a JSON
    array."""
    ignore_kinds: tuple[str, ...] = ()
    """Kinds of workloads that are not reported, such as `["Workflow", "TaskRun", "Job"]`. Compared, ignoring case,
    with the kind of the pod's controller and with `{kind}`; `Pod` is a pod without a controller. The variable is a
    JSON array."""
    namespace: str = ""
    """The one namespace that is watched. Empty means all."""
    selector: str = ""
    """Label selector of the pods that are watched. Empty means all."""
    snapshot_interval: PositiveDuration = 3600.0
    """Interval at which the watcher lists all pods, besides following their changes."""
    page_size: Annotated[int, Field(ge=1, le=5000)] = 500
    """Maximum objects in one page of a listing."""
    silence: PositiveDuration = 90.0
    """How long a watch may be silent before it is replaced. API servers send a bookmark about once a minute."""
    settle: PositiveDuration = 10.0
    """How soon the watcher lists all pods again after a rollout was undone."""
    heartbeat_file: Path | None = None
    """File that the watcher touches while it is alive, at least every `silence`."""

    @property
    def derived_environment_template(self) -> str:
        """The template that an empty `environment_template` stands for."""
        return "{cluster}/{namespace}" if self.cluster_name else "{namespace}"

    @property
    def cluster_name(self) -> str:
        """The cluster's name, "" for `none`; raises `ConfigurationError` if none is set."""
        if not self.cluster:
            raise ConfigurationError(
                "the cluster has no name: set CLUSTER_NAME (kubernetes.cluster) to a name that no other cluster has, "
                f"or to {NO_CLUSTER_NAME!r} if this is the only cluster that reports to this relay"
            )
        return "" if self.cluster == NO_CLUSTER_NAME else self.cluster


class Settings(BaseSettings):
    """All settings, read by `Settings.load()`, which raises `ConfigurationError` for faults."""

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
                f"api.timeout ({self.api.timeout:g} s), or a request of a paused run could overtake its successor's"
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
                f"({self.worker.budget:g} s), or a run would end before it sends"
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
        """URL of Celery's broker for kombu: its own, or the queue's Redis."""
        return self.broker_address.url

    @property
    def broker_address(self) -> addresses.ForKombu:
        """Celery's broker for kombu, with the TLS options of every connection."""
        return addresses.for_kombu(self._broker_url(), self.broker_tls)

    @property
    def broker_tls(self) -> addresses.Section:
        """The broker's TLS settings; if `broker.url` is empty, those of `redis` that `broker` does not override."""
        if self.broker.url:
            return self.broker
        own = self.broker.model_dump(include={"ca_file", "cert_file", "key_file"}, exclude_none=True)
        without = {"key_file": None} if "cert_file" in own else {}
        return self.redis.model_copy(update={**without, **own})

    def check_broker_files(self) -> None:
        """Raise `ConfigurationError` if a file of the broker's TLS cannot be read."""
        addresses.check_files(self._broker_url(), self.broker_tls, "broker" if self.broker.url else "redis")

    def _broker_url(self) -> str:
        return self.broker.url or self.redis.url.replace(";", "%3B")  # kombu splits at ;

    @property
    def expects_reviews(self) -> bool:
        """Whether admission reviews are expected: a setting of admission is changed, or a template has `{cluster}`.

        The defaults are no sign, because a gateway without Kubernetes has them too.
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
        """Return the API's settings; raise `ConfigurationError` if one that delivery needs is missing."""
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
        """Return the sources in their order: arguments, environment, file."""
        sources = [init_settings, env_settings, _ShortNames(settings_cls)]
        if path := os.environ.get("RELAY_CONFIG"):
            sources.append(_TomlFile(settings_cls, toml_file=path))
        return tuple(sources)

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Read all settings; raise `ConfigurationError` with each fault and its setting."""
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
    """The TOML file; a byte order mark is skipped."""

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
    """Raise `ConfigurationError` for a variable of an unknown section, which pydantic-settings ignores."""
    for name in os.environ:
        section, separator, _ = name.removeprefix("RELAY_").lower().partition("__")
        if name.startswith("RELAY_") and separator and section not in settings_cls.model_fields:
            known = ", ".join(settings_cls.model_fields)
            raise ConfigurationError(f"{name} names no section of the settings; there are: {known}")


def _unreadable_variables(settings_cls: type[Settings]) -> str:
    """Return a line, without the value, for each variable of a list or a section that is not JSON."""
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
    """A fault of a setting, a section or, without a path, a combination of settings."""

    path: tuple[str, ...]
    what: str
    is_unknown: bool = False

    @property
    def setting(self) -> str:
        """Name of the setting in the file."""
        return ".".join(self.path)

    def __str__(self) -> str:
        """Return the fault on a line, with the setting's variable."""
        short = (name for name, its in SHORT_NAMES.items() if its == self.path)
        variable = next(short, f"RELAY_{'__'.join(self.path)}".upper())
        where = f"{self.setting} ({variable})" if len(self.path) == 2 else self.setting  # noqa: PLR2004 - section, key
        return f"{where}: {self.what}" if where else self.what


def faults(error: ValidationError) -> list[Fault]:
    """Return the faults of settings."""
    found = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        is_unknown = fault["type"] == "extra_forbidden"
        what = "is not a setting" if is_unknown else fault["msg"].removeprefix("Value error, ")
        found.append(Fault(tuple(map(str, fault["loc"])), what, is_unknown))
    return found
