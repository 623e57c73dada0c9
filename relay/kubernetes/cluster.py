"""Requests to a cluster's API server through the official client: listings by page, watches by change.

The client finds the cluster and handles credentials and their renewal, TLS, proxies, paths and parameters. Two parts
of it are not used:

- its models. With `_preload_content=False` objects stay decoded JSON, which `relay.kubernetes.pod` reads. That takes
  a tenth of the time, and loses no field that this client does not know.
- `kubernetes.watch.Watch`. It makes a model of each object, and encodes it again for that; it skips a line that it
  cannot read, and so a change; and whether it resumes by itself depends on a time-out, without which it never notices
  a dead connection.

Every failure is `ClusterUnavailable`. Retries are left to the caller (`retry_policy`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Self

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from pydantic_core import from_json

from relay.errors import ClusterUnavailable, ConfigurationError
from relay.kubernetes import json_access

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from relay.settings import KubernetesSettings

#: Maximum time to connect to the API server, and maximum pause within its response to a listing.
CONNECT_SECONDS = 5.0
RESPONSE_SECONDS = 60.0

#: Maximum line of a watch. An object is at most 1.5 MiB in etcd by default.
MAX_LINE_BYTES = 16 * 1024 * 1024

#: Maximum characters of the server's message in an error.
_MESSAGE_CHARACTERS = 300

log = logging.getLogger("relay.watch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of a listing."""

    items: tuple[Mapping[str, Any], ...]
    #: The listing's resource version, the same for all its pages, from which a watch continues.
    position: str


class Cluster:
    """One cluster, as selected by the settings. A context manager; not thread-safe."""

    def __init__(self, settings: KubernetesSettings, *, context: str | None = None) -> None:
        """Read the credentials, without a request; raise `ConfigurationError` if there are none."""
        self._settings = settings
        self._context = context
        self._client = _connect(context)
        #: The server's clock at its last response; this machine's before the first.
        self.clock = datetime.now(UTC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def renew(self) -> None:
        """Read the credentials again; keep the old ones if that fails."""
        try:
            renewed = _connect(self._context)
        except ConfigurationError as error:
            log.warning("the credentials cannot be read again: %s", error)
            return
        self._client.close()
        self._client = renewed

    def pods(self) -> Iterator[Page]:
        """List the pods; all pages are of one moment."""
        return self._pages("pods", *self._pod_call(), label_selector=self._settings.selector)

    def nodes(self) -> Iterator[Page]:
        """List the nodes."""
        return self._pages("nodes", "list_node")

    def namespaces(self) -> Iterator[Page]:
        """List the namespaces."""
        return self._pages("namespaces", "list_namespace")

    def node(self, name: str) -> Mapping[str, Any]:
        """Return one node."""
        return self._object(f"node {name}", "read_node", name)

    def namespace(self, name: str) -> Mapping[str, Any]:
        """Return one namespace."""
        return self._object(f"namespace {name}", "read_namespace", name)

    def watch_pods(self, position: str, *, seconds: int) -> Generator[Mapping[str, Any]]:
        """Yield the changes of pods after `position`, for `seconds`.

        Each is `{"type": …, "object": …}`; an ERROR is raised with its code. The server is told the time to end. If
        it does not, or sends nothing for `silence`, the connection is considered dead.
        """
        name, *arguments = self._pod_call()
        silence = self._settings.silence
        deadline = time.monotonic() + seconds + silence
        with self._translated_errors("watch pods"):
            response = self._call(name)(
                *arguments,
                **_given(label_selector=self._settings.selector),
                watch=True,
                allow_watch_bookmarks=True,
                resource_version=position,
                timeout_seconds=seconds,
                _preload_content=False,
                _request_timeout=(CONNECT_SECONDS, silence),
            )
            with contextlib.closing(response):
                for line in _lines(response, deadline):
                    yield _change(line)

    def _pod_call(self) -> tuple[str, ...]:
        namespace = self._settings.namespace
        return ("list_namespaced_pod", namespace) if namespace else ("list_pod_for_all_namespaces",)

    def _pages(self, what: str, name: str, *arguments: str, **selectors: str) -> Iterator[Page]:
        """List by page; raise 410 if it took so long that the server no longer has that moment."""
        token = ""
        while True:
            with self._translated_errors(f"list {what}"):
                listing = self._request(
                    name, *arguments, limit=self._settings.page_size, **_given(_continue=token, **selectors)
                )
            token, position = (json_access.text(listing, "metadata", key) for key in ("continue", "resourceVersion"))
            if not position:
                raise ClusterUnavailable(f"list {what}: the answer is no listing")
            yield Page(items=tuple(json_access.each(listing, "items")), position=position)
            if not token:
                return

    def _object(self, what: str, name: str, *arguments: str) -> Mapping[str, Any]:
        with self._translated_errors(f"get {what}"):
            return self._request(name, *arguments)

    def _request(self, name: str, *arguments: str, **parameters: object) -> Mapping[str, Any]:
        """Return the decoded response to a request."""
        response = self._call(name)(
            *arguments,
            **parameters,
            _preload_content=False,
            _request_timeout=(CONNECT_SECONDS, RESPONSE_SECONDS),
        )
        self._update_clock(response.headers)
        return _decoded(response.data)

    def _call(self, name: str) -> Callable[..., Any]:
        return getattr(client.CoreV1Api(self._client), name)  # type: ignore[no-any-return]  # chosen by its name

    @contextlib.contextmanager
    def _translated_errors(self, what: str) -> Iterator[None]:
        """Raise `ClusterUnavailable` for the errors of the client."""
        try:
            yield
        except ApiException as error:
            self._update_clock(error.headers or {})
            raise _refusal(what, error) from error
        except urllib3.exceptions.ReadTimeoutError as error:
            raise ClusterUnavailable(f"{what}: nothing came for too long") from error
        except (urllib3.exceptions.HTTPError, OSError, ConfigException) as error:
            raise ClusterUnavailable(f"{what}: {error}") from error

    def _update_clock(self, headers: Mapping[str, str]) -> None:
        with contextlib.suppress(ValueError):
            date = headers.get("Date")
            now = parsedate_to_datetime(date) if date else datetime.now(UTC)
            self.clock = now if now.tzinfo else now.replace(tzinfo=UTC)


def _connect(context: str | None) -> client.ApiClient:
    """Connect to the cluster of the named kubeconfig, else of this pod, else of the user's kubeconfig."""
    configuration = client.Configuration()
    configuration.retries = False  # urllib3 would retry three times at once, and follow redirects with the token
    named = os.environ.get("KUBECONFIG")
    try:
        if named or context or "KUBERNETES_SERVICE_HOST" not in os.environ:
            config.load_kube_config(config_file=named, context=context, client_configuration=configuration)
        else:
            config.load_incluster_config(client_configuration=configuration)
    except (ConfigException, OSError, yaml.YAMLError, TypeError) as error:  # TypeError of a file that is no map
        raise ConfigurationError(
            f"no cluster to watch: {error}\n"
            "in a cluster it takes the pod's service account; elsewhere set KUBECONFIG, and --context if need be"
        ) from error
    return client.ApiClient(configuration)


def _given(**parameters: str) -> dict[str, str]:
    return {name: value for name, value in parameters.items() if value}


def _lines(response: urllib3.HTTPResponse, deadline: float) -> Iterator[bytes]:
    """Yield complete lines until the deadline; an incomplete last line is dropped."""
    pending = bytearray()
    for chunk in response.stream(amt=None):
        if time.monotonic() > deadline:
            return
        pending += chunk
        *lines, rest = pending.split(b"\n")
        yield from (bytes(line) for line in lines if line.strip())
        pending = bytearray(rest)
        if len(pending) > MAX_LINE_BYTES:
            raise ClusterUnavailable(f"watch pods: a line is longer than {MAX_LINE_BYTES} bytes")


def _change(line: bytes) -> Mapping[str, Any]:
    change = _decoded(line)
    if json_access.text(change, "type") != "ERROR":
        return change
    status = json_access.part(change, "object")
    code, message = status.get("code"), json_access.text(status, "message") or json_access.text(status, "reason")
    raise ClusterUnavailable(
        f"watch pods: {code} {message[:_MESSAGE_CHARACTERS]}", status=code if type(code) is int else None
    )


def _decoded(body: bytes) -> Mapping[str, Any]:
    try:
        decoded = from_json(body)
    except ValueError as error:
        raise ClusterUnavailable(f"the API server's answer is no JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise ClusterUnavailable("the API server's answer is no object")
    return decoded


def _refusal(what: str, error: ApiException) -> ClusterUnavailable:
    """Return the error with the server's message, without headers."""
    message = ""
    with contextlib.suppress(ValueError):
        message = json_access.text(from_json(error.body or ""), "message")
    status = error.status or None  # the client sets 0 for a TLS error
    explained = f"{status or ''} {message or error.reason or ''}".strip().replace("\n", " ")
    retry_after = (error.headers or {}).get("Retry-After", "")
    return ClusterUnavailable(
        f"{what}: {explained[:_MESSAGE_CHARACTERS]}",
        status=status,
        retry_after_seconds=float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0,
    )
