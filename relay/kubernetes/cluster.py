"""The cluster's API server, asked through the official client: listings page by page, watches change by change.

Of the client it takes what is tedious to get right: where the cluster is, its credentials and their renewal, TLS,
proxies, paths and parameters. Two things it leaves:

- its models. `_preload_content=False` gives the answer as it came, and objects stay the decoded JSON that
  `relay.kubernetes.pod` reads. That costs a tenth of the time, and no field that this client does not know is lost.
- `kubernetes.watch.Watch`. It makes a model of each object, for which it encodes it again; it passes over a line
  that it cannot read, and so over a change; and whether it resumes by itself depends on whether it was told a
  time-out, without which it never notices a dead link.

All that goes wrong is `ClusterUnavailable`. Nothing here tries again: `next_step` decides that.
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

#: How long a connection to the API server may take to be made, and a pause within an answer to a listing may last.
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0

#: The longest line of a watch: an object is at most 1.5 MiB in etcd, 3 MiB if somebody set the limit so.
MAX_LINE_BYTES = 16 * 1024 * 1024

#: Characters of the server's explanation that go into an error.
_MESSAGE_CHARACTERS = 300

log = logging.getLogger("relay.watch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A part of a listing."""

    items: tuple[Mapping[str, Any], ...]
    #: The listing's resource version, the same for all its pages: where a watch goes on from.
    position: str


class Cluster:
    """One cluster as the settings say it is looked at. A context manager; not thread-safe."""

    def __init__(self, settings: KubernetesSettings, *, context: str | None = None) -> None:
        """Read the credentials; `ConfigurationError` if there are none. No request is made."""
        self._settings = settings
        self._context = context
        self._client = _connect(context)
        #: The server's clock at its last answer; ours until there was one.
        self.clock = datetime.now(UTC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def renew(self) -> None:
        """Read the credentials again; the old ones stay if there are none just now."""
        try:
            renewed = _connect(self._context)
        except ConfigurationError as error:
            log.warning("the credentials cannot be read again: %s", error)
            return
        self._client.close()
        self._client = renewed

    def pods(self) -> Iterator[Page]:
        """List the pods, consistently: all pages are of one moment."""
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
        """Yield what happens to pods after `position`, for as long; then end.

        Yields `{"type": …, "object": …}`, as they come, but for an ERROR, which is raised with its code. The server
        is asked to end it in time. When it does not, or says nothing for `silence`, the link is taken for dead.
        """
        name, *arguments = self._pod_call()
        silence = self._settings.silence
        deadline = time.monotonic() + seconds + silence
        with self._asking("watch pods"):
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
        """List page by page; 410 if it took so long that the server forgot the moment."""
        token = ""
        while True:
            with self._asking(f"list {what}"):
                listing = self._answer(
                    name, *arguments, limit=self._settings.page_size, **_given(_continue=token, **selectors)
                )
            token, position = (json_access.text(listing, "metadata", key) for key in ("continue", "resourceVersion"))
            if not position:
                raise ClusterUnavailable(f"list {what}: the answer is no listing")
            yield Page(items=tuple(json_access.each(listing, "items")), position=position)
            if not token:
                return

    def _object(self, what: str, name: str, *arguments: str) -> Mapping[str, Any]:
        with self._asking(f"get {what}"):
            return self._answer(name, *arguments)

    def _answer(self, name: str, *arguments: str, **parameters: object) -> Mapping[str, Any]:
        """Ask, and decode the whole answer."""
        response = self._call(name)(
            *arguments,
            **parameters,
            _preload_content=False,
            _request_timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
        )
        self._look_at_the_clock(response.headers)
        return _decoded(response.data)

    def _call(self, name: str) -> Callable[..., Any]:
        return getattr(client.CoreV1Api(self._client), name)  # type: ignore[no-any-return]  # chosen by its name

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Turn what the client raises into `ClusterUnavailable`."""
        try:
            yield
        except ApiException as error:
            self._look_at_the_clock(error.headers or {})
            raise _refusal(what, error) from error
        except urllib3.exceptions.ReadTimeoutError as error:
            raise ClusterUnavailable(f"{what}: nothing came for too long") from error
        except (urllib3.exceptions.HTTPError, OSError, ConfigException) as error:
            raise ClusterUnavailable(f"{what}: {error}") from error

    def _look_at_the_clock(self, headers: Mapping[str, str]) -> None:
        with contextlib.suppress(ValueError):
            date = headers.get("Date")
            told = parsedate_to_datetime(date) if date else datetime.now(UTC)
            self.clock = told if told.tzinfo else told.replace(tzinfo=UTC)


def _connect(context: str | None) -> client.ApiClient:
    """Find the cluster: a kubeconfig that is named, else the one that we are in, else the user's own kubeconfig."""
    configuration = client.Configuration()
    configuration.retries = False  # neither at once, three times, behind our back; nor a redirect with the token
    named = os.environ.get("KUBECONFIG")
    try:
        if named or context or "KUBERNETES_SERVICE_HOST" not in os.environ:
            config.load_kube_config(config_file=named, context=context, client_configuration=configuration)
        else:
            config.load_incluster_config(client_configuration=configuration)
    except (ConfigException, OSError, yaml.YAMLError, TypeError) as error:  # the last of a file that is no map
        raise ConfigurationError(
            f"no cluster to watch: {error}\n"
            "in a cluster it takes the pod's service account; elsewhere set KUBECONFIG, and --context if need be"
        ) from error
    return client.ApiClient(configuration)


def _given(**parameters: str) -> dict[str, str]:
    return {name: value for name, value in parameters.items() if value}


def _lines(response: urllib3.HTTPResponse, deadline: float) -> Iterator[bytes]:
    """Yield the lines that came whole, until the deadline; what is cut off at the end was not told."""
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
    """Say what the server said; neither its headers nor ours."""
    message = ""
    with contextlib.suppress(ValueError):
        message = json_access.text(from_json(error.body or ""), "message")
    status = error.status or None  # 0 is what the client makes of a TLS error
    explained = f"{status or ''} {message or error.reason or ''}".strip().replace("\n", " ")
    retry_after = (error.headers or {}).get("Retry-After", "")
    return ClusterUnavailable(
        f"{what}: {explained[:_MESSAGE_CHARACTERS]}",
        status=status,
        retry_after_seconds=float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0,
    )
